"""One dictionary's training as files: its metrics, its checkpoints, what it leaves behind."""

import hashlib
import json
import math
import os
import pathlib
import shutil
from dataclasses import dataclass
from typing import Any

import accelerate
import torch

from harvest.errors import UserError
from harvest.files import make_folder, write_json
from harvest.store import Store
from train.anchors import load_anchors
from train.batches import Batch
from train.checkpoint import Checkpoints
from train.config import DictionarySpec, training_rows
from train.files import save, versions
from train.resampling import Resampling
from train.trainer import Trainer, learning_rate

LOGGED_STEPS = 200
"""A run logs about this many lines, however long it is."""


@dataclass(frozen=True)
class Job:
    """A dictionary to train and where it goes."""

    spec: DictionarySpec
    output: pathlib.Path
    checkpoints: pathlib.Path
    anchors: pathlib.Path | None = None
    """The file that `make_anchors` made for this spec; needed exactly if it has anchors."""


class Run:
    """A job in progress, from wherever the last process left it."""

    def __init__(self, job: Job, store: Store, accelerator: accelerate.Accelerator) -> None:
        assert (job.spec.anchors is None) == (job.anchors is None)
        self.job, self.accelerator = job, accelerator
        self.main: bool = accelerator.is_main_process
        anchors = None if job.anchors is None else load_anchors(job.anchors)
        self.trainer = Trainer(job.spec, store, accelerator, anchors)
        identity = {
            "spec": job.spec.model_dump(),
            "store": store.fingerprint,
            "anchors": None if job.anchors is None else hashlib.sha256(job.anchors.read_bytes()).hexdigest(),
        }
        self.saved = Checkpoints(job.checkpoints, identity, self.trainer.ranks)
        self.resampling = Resampling(self.trainer, store, training_rows(store.rows, job.spec.holdout))
        self.metrics, self.events = (job.checkpoints / f"{name}.jsonl" for name in ("metrics", "resampling"))
        self.log_every = max(1, self.trainer.steps // LOGGED_STEPS)
        self.last: dict[str, Any] = {}

    def start(self) -> None:
        """Make the folders, and continue from the newest checkpoint."""
        if self.main:
            make_folder(self.job.output)
            make_folder(self.job.checkpoints)
        self.accelerator.wait_for_everyone()
        found = self.saved.newest()
        if found is not None:
            self.trainer.restore(found[1]["step"], found[0])
        if self.main:
            for log in (self.metrics, self.events):
                with log.open("ab") as file:
                    file.truncate(found[1]["bytes"][log.name] if found else 0)

    def train_on(self, batch: Batch) -> dict[str, Any]:
        """One step; returns the last line that was logged. Raises `UserError` if the loss is no number."""
        trainer = self.trainer
        logged = trainer.train_on(batch)
        if not math.isfinite(loss := float(logged["loss"])):
            self._stop_at(loss, batch)
        if trainer.step % self.log_every == 0 or trainer.step == trainer.steps:
            # Only facts that a rerun repeats: no clock.
            self.last = {
                "step": trainer.step,
                "tokens": trainer.step * self.job.spec.batch,
                **{name: float(value) for name, value in logged.items()},
                "idle_share": float(trainer.idle_share()),
                "dead_share": float(trainer.dead_share()),
                "learning_rate": learning_rate(trainer.step - 1, trainer.steps, self.job.spec.peak_learning_rate),
            }
            self._log(self.metrics, self.last)
        if (event := self.resampling.after_step()) is not None:
            self._log(self.events, event)
        return self.last

    def _stop_at(self, loss: float, batch: Batch) -> None:
        """All processes come here together: the loss is the mean of theirs."""
        ranks, own = self.trainer.ranks, torch.from_numpy(batch.rows).to(self.accelerator.device)
        rows = (ranks.stack(own).T if ranks.row_shares > 1 else own).flatten().tolist()  # as one process has them
        if not self.main:
            raise SystemExit(2)
        step, listed = self.trainer.step, self.job.checkpoints / "not-finite.json"
        write_json(listed, {"step": step, "loss": str(loss), "rows": rows})
        raise UserError(
            f"loss is {loss} at step {step}, in rows {rows[:8]} and others, all listed in {listed}; "
            "the last good checkpoint is kept: lower learning_rate or look at these rows"
        )

    def _log(self, log: pathlib.Path, line: dict[str, Any]) -> None:
        if not self.main:
            return
        try:
            with log.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise UserError(f"{log}: cannot be written ({error.strerror}); the last checkpoint is kept") from None

    def checkpoint(self) -> None:
        """Called by all processes at the same step; one writes, or each its latents."""
        tensors = self.trainer.state()
        if self.main or self.trainer.ranks.latent_shares > 1:
            for log in (self.metrics, self.events):
                with log.open("rb") as file:
                    os.fsync(file.fileno())
            sizes = {log.name: log.stat().st_size for log in (self.metrics, self.events)}
            self.saved.save(self.trainer.step, tensors, {"step": self.trainer.step, "bytes": sizes})

    def finish(self, facts: dict[str, Any]) -> None:
        """Write the dictionary, its metrics and, last, its report. The checkpoints stay."""
        trainer, output = self.trainer, self.job.output
        report = {
            "spec": self.job.spec.model_dump(),
            "kind": self.job.spec.kind,
            "reads": trainer.reads,
            "writes": trainer.writes,
            "steps": trainer.steps,
            "last": self.last,
            "versions": versions(),
            **facts,
        }
        dictionary = trainer.finished()
        if self.main or trainer.ranks.latent_shares > 1:
            about = ("kind", "reads", "writes", "widths", "store", "spec", "versions")
            save(dictionary, output, {key: report[key] for key in about})
        if not self.main:
            return
        try:
            for log in (self.metrics, self.events):
                shutil.copyfile(log, output / log.name)
            write_json(output / "training.json", report)
        except OSError as error:
            raise UserError(f"output folder {output}: cannot be written ({error.strerror})") from None
