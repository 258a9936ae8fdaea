"""Time our own training steps (forward, backward, Adam, unit-norm decoder, counting of firing) on random activations.

    python tests/benchmarks/peers/train_ours.py --architecture batchtopk --device cuda

Prints the same JSON line as the peers' scripts beside it, and the seconds of the encoder's product. Needs the
repository on PYTHONPATH.
"""

import contextlib
import pathlib
import sys
import tempfile
from typing import Any

import accelerate
import numpy as np
import torch
from train_timing import arguments, print_speed

from harvest.memory import keep_buffers
from tests.synthetic import Synthetic, synthetic_store
from train.batches import Batch
from train.config import DictionarySpec
from train.trainer import Trainer


class Noise(Synthetic):
    """Rows as the peers get them."""

    def read_sites(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        rng = torch.Generator().manual_seed(start)
        return {site: torch.randn(stop - start, width, generator=rng) for site, width in self.widths.items()}


given = arguments(__doc__, ["topk", "batchtopk", "matryoshka", "jumprelu"])
method: dict[str, Any] = {"sparsity": {given.architecture: {"l0": given.k}}}
if given.architecture == "matryoshka":
    method = {"sparsity": {"batchtopk": {"l0": given.k}}, "matryoshka": {"prefixes": [0.25, 0.5, 1]}}
spec = DictionarySpec.model_validate(
    {"reads": ["x"], "latents": given.latents, "batch": given.batch, "tokens": 1000 * given.batch, **method}
)
keep_buffers()
with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
    store = synthetic_store(pathlib.Path(folder), Noise(rows=1024, widths={"x": given.d}))
    trainer = Trainer(spec, store, accelerate.Accelerator(cpu=given.device == "cpu"))
numbers = np.arange(given.batch)


def step(rows_BD: torch.Tensor) -> None:
    trainer.train_on(Batch({"x": rows_BD}, numbers))


@torch.no_grad()
def encoder(rows_BD: torch.Tensor) -> None:
    trainer.dictionary.preactivations(rows_BD, trainer.rounded)


print_speed("ours", given, step, torch.randn(given.batch, given.d, device=given.device), encoder)
