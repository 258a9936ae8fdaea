"""Dictionaries of every sparsity and kind, trained one after the other: alone, or by the processes of one `torchrun`.

    torchrun --nproc_per_node 2 -m tests.train.ranks_cases STORE FOLDER

In float64: in float32 a near tie between two latents falls this way or that on the last bit, which depends on how sums
are grouped, and a curve that has taken the other way is another curve.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import train.trainer
from harvest.store import Store
from tests.training import job_of, spec_of, watch_steps
from train.anchors import make_anchors
from train.batches import Batch
from train.config import DictionarySpec
from train.loop import train as train_jobs
from train.scaling import Scaling
from train.sparsity import SPARSITIES
from train.trainer import Trainer

STEPS = {"rows": 200, "latents": 100}
"""What processes share out, and for how long."""
BATCHTOPK = {"sparsity": {"batchtopk": {"l0": 3}}}
RELU = {"sparsity": {"relu": {"l0": 3}}}
CASES: dict[str, dict[str, Any]] = {
    **{method: {"sparsity": {method: {"l0": 3}}} for method in SPARSITIES},
    "prefixes": {"matryoshka": {"prefixes": [0.25, 0.5, 1]}},
    "prefixes of a batch": {**BATCHTOPK, "matryoshka": {"prefixes": [0.25, 0.5, 1]}},
    "levels": {"matryoshka": {"levels": [0.4, 1]}},
    "levels of many": {**RELU, "matryoshka": {"levels": [0.4, 0.7, 1]}},
    "auxk": {"auxk": {"dead_after": 500}},
    "auxk of a batch": {**BATCHTOPK, "auxk": {"dead_after": 500}},
    "resampled": {"resample": {"every": 128 * 10, "window": 500, "inputs": 3_000}},
    "resampled transcoder": {
        "sparsity": {"jumprelu": {"l0": 3}},
        "writes": ["y"],
        "resample": {"every": 128 * 10, "window": 128},
    },
    "anchors": {"anchors": {"source": "clusters", "count": 5}},
    "skip transcoder": {"writes": ["y"], "skip": True},
    "crosscoder": {**RELU, "reads": ["x", "y"]},
}


def in_float64(patched: pytest.MonkeyPatch) -> None:
    """Train in double precision from here on."""
    scaling_of = Scaling.of

    def of(store: Store, sites: list[str]) -> Scaling:
        found = scaling_of(store, sites)
        return Scaling(found.mean.double(), found.scale.double())

    patched.setattr(Scaling, "of", of)
    patched.setattr(train.trainer, "bfloat16_is_fast", lambda device: False)


def make_case_anchors(store: Store) -> None:
    make_anchors(spec_of(**CASES["anchors"]), store, store.path.with_name("anchors.safetensors"))


def train_all(store: Store, folder: Path) -> None:
    """Every case, in `folder/<split>/<case>`; what `make_case_anchors` made must be there."""
    with pytest.MonkeyPatch.context() as patched:
        in_float64(patched)
        for split, steps in STEPS.items():
            for name, changes in CASES.items():
                train_case(spec_of(**changes, split=split, tokens=128 * steps), store, folder / split / name)


def train_case(spec: DictionarySpec, store: Store, folder: Path) -> None:
    """Leaves the run's output, and `idle.<rank>.json`: after each step, for how many rows each latent has not fired."""
    anchors = None if spec.anchors is None else store.path.with_name("anchors.safetensors")
    idle: list[list[int]] = []

    def note(trainer: Trainer, batch: Batch) -> None:
        idle.append(trainer.idle_F.tolist())

    with pytest.MonkeyPatch.context() as patched:
        watch_steps(patched, note)
        torch.set_default_dtype(torch.float64)
        train_jobs([replace(job_of(spec, folder), anchors=anchors)], store.path)
        torch.set_default_dtype(torch.float32)
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    (folder / f"idle.{rank}.json").write_text(json.dumps(idle))


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_all(Store(Path(sys.argv[1])), Path(sys.argv[2]))
