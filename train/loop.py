"""Train a dictionary from a store, through Accelerate, from wherever the last run stopped."""

import json
import math
import pathlib
import resource
import shutil
import time
from typing import Any

import accelerate
import torch

from harvest.errors import UserError
from harvest.files import make_folder, write_json
from harvest.progress import progress
from harvest.store import Store
from train.anchors import load_anchors
from train.batches import Batches
from train.checkpoint import Checkpoints
from train.config import DictionarySpec, training_rows
from train.files import save, versions
from train.memory import keep_buffers
from train.trainer import Trainer, learning_rate

LOGGED_STEPS = 200
"""A run logs about this many lines, however long it is."""


def train(
    spec: DictionarySpec,
    store_path: pathlib.Path,
    output: pathlib.Path,
    checkpoints: pathlib.Path,
    anchors_path: pathlib.Path | None = None,
    every: float = 60,
) -> None:
    """Write `cfg.json`, `sae_weights.safetensors`, `metrics.jsonl` and, last, `training.json` into `output`.

    A checkpoint is made every `every` seconds under `checkpoints`, which goes when training is done. The same command
    after a kill continues from the newest one.
    """
    store = Store(store_path)
    if not store.finished.all():
        raise UserError(f"store {store_path}: is not finished; run the harvest again to complete it")
    keep_buffers()
    # Gradients are kept once, not also in the messages; what else is in the weights is the same everywhere by itself.
    shared = accelerate.DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)
    accelerator = accelerate.Accelerator(kwargs_handlers=[shared])
    rows = training_rows(store.rows, spec.holdout)
    if (spec.anchors is None) != (anchors_path is None):
        raise UserError("--anchors: give the file that `python -m train anchors` made, exactly if the spec has anchors")
    trainer = Trainer(spec, store, accelerator, None if anchors_path is None else load_anchors(anchors_path))
    batches = Batches(
        store,
        trainer.sites,
        spec.batch,
        spec.seed,
        rows,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    if accelerator.is_main_process:
        make_folder(output)
        make_folder(checkpoints)
    accelerator.wait_for_everyone()
    identity = {"spec": spec.model_dump(), "store": store.fingerprint}
    saved = Checkpoints(checkpoints, identity)
    metrics = checkpoints / "metrics.jsonl"
    if (found := saved.newest()) is not None:
        tensors, facts = found
        trainer.restore(facts["step"], tensors)
        with metrics.open("r+b") as file:
            file.truncate(facts["metrics_bytes"])
    elif accelerator.is_main_process:
        metrics.write_bytes(b"")
    begun, started_at = time.perf_counter(), trainer.step
    last = _run(trainer, batches, saved, metrics, every)
    if accelerator.is_main_process:
        seconds = time.perf_counter() - begun
        report = {
            "spec": spec.model_dump(),
            "kind": spec.kind,
            "reads": trainer.reads,
            "writes": trainer.writes,
            "widths": {site: store.widths[site] for site in trainer.sites},
            "store": store.fingerprint,
            "rows_trained_on": rows,
            "steps": trainer.steps,
            "last": last,
            "seconds": seconds,
            "tokens_per_second": (trainer.steps - started_at) * spec.batch / seconds,
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "processes": accelerator.num_processes,
            "device": str(accelerator.device),
            "versions": versions(),
        }
        save(
            trainer.finished(),
            output,
            {key: report[key] for key in ("kind", "reads", "writes", "widths", "store", "spec", "versions")},
        )
        shutil.copyfile(metrics, output / "metrics.jsonl")
        write_json(output / "training.json", report)
        saved.remove()
    accelerator.wait_for_everyone()


def _run(trainer: Trainer, batches: Batches, saved: Checkpoints, metrics: pathlib.Path, every: float) -> dict[str, Any]:
    """The loop proper; returns the last logged line."""
    main = trainer.accelerator.is_main_process
    log_every = max(1, trainer.steps // LOGGED_STEPS)
    last: dict[str, Any] = {}
    checkpointed = time.monotonic()
    rows = trainer.spec.batch
    with (
        progress(trainer.steps * rows, "train", done=trainer.step * rows, shown=main) as bar,
        metrics.open("a") as file,
    ):
        for batch in batches.iterate(trainer.step, trainer.steps):
            logged = trainer.train_on(batch)
            bar.update(rows)
            if not math.isfinite(loss := float(logged["loss"])):
                raise UserError(
                    f"loss is {loss} at step {trainer.step}, in rows {batch.rows[:8].tolist()} and others; "
                    "the last good checkpoint is kept: lower learning_rate or look at these rows"
                )
            if trainer.step % log_every == 0 or trainer.step == trainer.steps:
                last = _line(trainer, logged)
                if main:
                    file.write(json.dumps(last) + "\n")
                bar.set_postfix(loss=f"{last['loss']:.4f}", l0=f"{last['l0']:.1f}", refresh=False)
            if main and time.monotonic() - checkpointed > every and trainer.step < trainer.steps:
                file.flush()
                facts = {"step": trainer.step, "metrics_bytes": metrics.stat().st_size}
                saved.save(trainer.step, trainer.state(), facts)
                checkpointed = time.monotonic()
    return last


def _line(trainer: Trainer, logged: dict[str, torch.Tensor]) -> dict[str, Any]:
    """One line of `metrics.jsonl`. Only facts that a rerun repeats: no clock."""
    return {
        "step": trainer.step,
        "tokens": trainer.step * trainer.spec.batch,
        **{name: float(value) for name, value in logged.items()},
        "idle_share": float((trainer.idle_F > 0).float().mean()),
        "learning_rate": learning_rate(trainer.step - 1, trainer.steps, trainer.spec.peak_learning_rate),
    }
