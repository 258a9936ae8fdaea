"""How fast a dictionary trains: a full step of ours and of the peers, on a CPU, at 768 x 16,384, l0 32, batch 2048."""

import itertools
import json
import pathlib
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import accelerate
import torch

from harvest.store import Store
from tests.benchmarks.measure import record
from tests.synthetic import Synthetic, synthetic_store
from train.batches import Batch, Batches
from train.config import DictionarySpec
from train.memory import keep_buffers
from train.trainer import Trainer

D, LATENTS, L0, BATCH = 768, 16_384, 32, 2048
STEPS, PAIRS, ENCODER_RUNS = 10, 3, 5
PEERS = {"sparsify": ".peers/eai-sparsify/bin/python", "saelens": ".peers/sae-lens/bin/python"}
AGAINST = [
    ("topk", "sparsify"),
    ("topk", "saelens"),
    ("batchtopk", "saelens"),
    ("matryoshka", "saelens"),
    ("jumprelu", "saelens"),
]
WARM = {"jumprelu": 150}
"""Steps before the clock starts: JumpReLU's l0 has then come to the target. SAELens's step costs the same at any l0."""
WITH = f"{D} x {LATENTS}, l0 {L0}, batch {BATCH}, a step with forward, backward, Adam and unit-norm decoder"


def run() -> list[dict[str, Any]]:
    keep_buffers()
    figures = []
    with tempfile.TemporaryDirectory() as name:
        source = Synthetic(rows=16 * BATCH, widths={"x": D}, features=4096, active=L0 / 4096, dtype="bfloat16")
        store = synthetic_store(pathlib.Path(name), source)
        for architecture, pairs in itertools.groupby(AGAINST, key=lambda pair: pair[0]):
            trainer = _trainer(architecture, store)
            batches = Batches(store, trainer.sites, BATCH, 0).iterate(0, 10**9)
            _seconds_of_steps(trainer, batches, WARM.get(architecture, 3))
            if architecture == "topk":
                figures.append(_encoder_share(trainer, batches))
            figures += [_against(peer, architecture, trainer, batches) for _, peer in pairs]
    return figures


def _trainer(architecture: str, store: Store) -> Trainer:
    nested = architecture == "matryoshka"
    keys = {
        "reads": ["x"],
        "latents": LATENTS,
        "sparsity": {"topk" if nested else architecture: {"l0": L0}},
        "matryoshka": {"prefixes": [0.25, 0.5, 1]} if nested else None,
        "tokens": 10_000_000,
        "batch": BATCH,
    }
    return Trainer(DictionarySpec.model_validate(keys), store, accelerate.Accelerator(cpu=True))


def _seconds_of_steps(trainer: Trainer, batches: Iterator[Batch], steps: int) -> list[float]:
    seconds = []
    for _ in range(steps):
        batch = next(batches)
        begun = time.perf_counter()
        trainer.train_on(batch)
        seconds.append(time.perf_counter() - begun)
    return seconds


def _against(peer: str, architecture: str, trainer: Trainer, batches: Iterator[Batch]) -> dict[str, Any]:
    name = f"training step, {architecture} / {peer}"
    python = pathlib.Path(PEERS[peer])
    script = pathlib.Path(__file__).parent / f"peers/train_{peer}.py"
    arguments = ["--architecture", architecture, "--d", D, "--latents", LATENTS, "--k", L0, "--batch", BATCH]
    command = [str(python), str(script), *map(str, arguments)]
    ours, theirs = [], []
    for _ in range(PAIRS):
        ours.append(BATCH / statistics.median(_seconds_of_steps(trainer, batches, STEPS)))
        if python.exists():
            said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            theirs.append(float(json.loads(said)["tokens_per_second"]))
    if not theirs:
        return record(name, ours, None, "tokens/s", f"{WITH}; {python} is not there: `make peers` makes it")
    return record(name, ours, theirs, "tokens/s", f"{WITH}; medians of {STEPS} and 5 steps; {PAIRS} pairs")


def _encoder_share(trainer: Trainer, batches: Iterator[Batch]) -> dict[str, Any]:
    """What the encoder's product alone would allow."""
    x_BP = torch.randn(BATCH, D)
    W_bf16 = trainer.dictionary.W_enc.detach().bfloat16()
    ours, floor = [], []
    for _ in range(ENCODER_RUNS):
        ours.append(BATCH / statistics.median(_seconds_of_steps(trainer, batches, STEPS)))
        begun = time.perf_counter()
        x_BP.bfloat16() @ W_bf16.T
        floor.append(BATCH / (time.perf_counter() - begun))
    how = f"{WITH}; peer: the bfloat16 product of the encoder and nothing else, so the ratio is its share of the step"
    return record("training step, topk / encoder product", ours, floor, "tokens/s", how)
