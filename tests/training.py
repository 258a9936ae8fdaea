"""Small training runs, here and in processes of their own."""

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # the first optimizer step imports it; here it is imported once for all children
from torch import Tensor

from harvest.store import Store
from train.batches import Batch
from train.config import DictionarySpec
from train.loop import train
from train.run import Job
from train.trainer import Trainer

ROOT = Path(__file__).parents[1]


KINDS: dict[str, dict[str, Any]] = {
    "sae": {},
    "transcoder": {"writes": ["y"]},
    "crosscoder": {"reads": ["x", "y"]},
}


def spec_of(**changes: Any) -> DictionarySpec:
    small = {"reads": ["x"], "latents": 64, "sparsity": {"topk": {"l0": 3}}, "tokens": 12_800, "batch": 128}
    return DictionarySpec.model_validate({**small, "learning_rate": 6e-3, **changes})


def job_of(spec: DictionarySpec, folder: Path) -> Job:
    return Job(spec, folder / "output", folder / "checkpoints")


def run(spec: DictionarySpec, store: Store, folder: Path, every: float = 1e9) -> Path:
    train([job_of(spec, folder)], store.path, every)
    return folder / "output"


def metrics_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def step_reached(folder: Path) -> int:
    return max((int(path.name[5:]) for path in folder.glob("checkpoints/step-*[0-9]")), default=0)


def watch_steps(monkeypatch: pytest.MonkeyPatch, seen: Callable[[Trainer, Batch], None]) -> None:
    """Call `seen` after each step."""
    original = Trainer.train_on

    def train_on(self: Trainer, batch: Batch) -> dict[str, Tensor]:
        logged = original(self, batch)
        seen(self, batch)
        return logged

    monkeypatch.setattr(Trainer, "train_on", train_on)


def start(specs: list[DictionarySpec], store: Store, folders: list[Path]) -> ForkServerProcess:
    """Train in one pass with checkpoints after each step, in a process that may be killed. PYTHONPATH must hold the
    repository.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training"])  # imports once, not for every process
    arguments = ([spec.model_dump_json() for spec in specs], store.path, folders)
    process = context.Process(target=_train_with_checkpoint_each_step, args=arguments)
    process.start()
    return process


def _train_with_checkpoint_each_step(specs: list[str], store: Path, folders: list[Path]) -> None:
    with (folders[0] / "stderr").open("a") as sys.stderr:
        torch.set_num_threads(1)
        jobs = [job_of(DictionarySpec.model_validate_json(s), folder) for s, folder in zip(specs, folders, strict=True)]
        train(jobs, store, every=0)


TWO_PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def command(spec: DictionarySpec, store: Store, folder: Path, *launcher: str) -> None:
    """`python -m train run` in a process of its own."""
    process = begin(spec, store, folder, *launcher)
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr


def begin(spec: DictionarySpec, store: Store, folder: Path, *launcher: str) -> "subprocess.Popen[str]":
    arguments = ["-m", "train", "run", spec.model_dump_json(), "--store", str(store.path)]
    arguments += ["--output", str(folder / "output"), "--checkpoints", str(folder / "checkpoints")]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, *launcher, *arguments], env=quiet, cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
