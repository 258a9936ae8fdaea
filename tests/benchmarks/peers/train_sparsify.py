"""Time training steps of sparsify (forward, backward, Adam, unit-norm decoder) on random activations; runs in
sparsify's environment.

    .peers/eai-sparsify/bin/python tests/benchmarks/peers/train_sparsify.py --device cuda

Prints one JSON line. Weights are float32; on a GPU sparsify itself runs its forward pass in bfloat16 and decodes with
a Triton kernel. It is spared its trainer's projection of the decoder's gradient and counting of firing.
"""

import contextlib
import importlib.metadata
import sys

import torch
from train_timing import arguments, print_speed

with contextlib.redirect_stdout(sys.stderr):  # it says there which decoder it takes
    from sparsify import SparseCoder, SparseCoderConfig

given = arguments(__doc__, ["topk"])
torch.manual_seed(0)
config = SparseCoderConfig(num_latents=given.latents, k=given.k)
coder = SparseCoder(given.d, config, device=given.device, dtype=torch.float32)
optimizer = torch.optim.Adam(coder.parameters(), lr=3e-4)


def step(rows_BD: torch.Tensor) -> None:
    coder(rows_BD).fvu.backward()
    optimizer.step()
    optimizer.zero_grad()
    coder.set_decoder_norm_to_unit_norm()


version = importlib.metadata.version("eai-sparsify")
print_speed(f"sparsify {version}", given, step, torch.randn(given.batch, given.d, device=given.device))
