"""Checks of the sparse products that hold for whatever device computes them."""

import torch
from torch import Tensor

from train.kernels import SparsePattern, places

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-7}
"""Of a result relative to the float64 formula: sums are exact to float32 at least, and rounded once. To bfloat16,
Triton's interpreter rounds towards zero."""


def uneven_mask(rng: torch.Generator, rows: int, latents: int) -> Tensor:
    """Rows of very different length. One in three is empty; the last one has every latent, and the last latent fires
    in every row that is not empty."""
    mask_BF = torch.rand(rows, latents, generator=rng) < torch.rand(rows, 1, generator=rng) ** 2
    mask_BF[:, -1] = True
    mask_BF[::3] = False
    mask_BF[-1] = True
    return mask_BF


def check_products(device: str, dtype: torch.dtype, rows: int, latents: int, width: int, seed: int = 0) -> None:
    """Both products and all their gradients, against dense float64 matrices on the CPU."""
    rng = torch.Generator().manual_seed(seed)
    mask_BF = uneven_mask(rng, rows, latents)
    pattern = SparsePattern.from_flat(places(mask_BF).to(device), rows, latents)
    x_BD, upstream_BD = rounded(rng, dtype, rows, width), rounded(rng, dtype, rows, width)
    W_FD, values_BF = rounded(rng, dtype, latents, width), rounded(rng, dtype, rows, latents)

    values = values_BF[mask_BF].to(device, dtype).requires_grad_()
    x, W = x_BD.detach().to(device, dtype).requires_grad_(), W_FD.detach().to(device, dtype).requires_grad_()
    upstream = upstream_BD.detach().to(device, dtype)

    expected_BD = (values_BF * mask_BF) @ W_FD
    found_BD = pattern.product(values, W)
    close(found_BD, expected_BD, dtype)
    by_values, by_W = torch.autograd.grad(expected_BD, (values_BF, W_FD), upstream_BD)
    found_by_values, found_by_W = torch.autograd.grad(found_BD, (values, W), upstream)
    close(found_by_values, by_values[mask_BF], dtype)
    close(found_by_W, by_W, dtype)

    expected_N = (x_BD @ W_FD.T)[mask_BF]
    found_N = pattern.sampled(x, W)
    close(found_N, expected_N, dtype)
    by_x, by_W = torch.autograd.grad(expected_N, (x_BD, W_FD), values_BF[mask_BF])
    found_by_x, found_by_W = torch.autograd.grad(found_N, (x, W), values.detach())
    close(found_by_x, by_x, dtype)
    close(found_by_W, by_W, dtype)


def rounded(rng: torch.Generator, dtype: torch.dtype, *shape: int) -> Tensor:
    """Random numbers that `dtype` can hold, as float64."""
    return torch.randn(shape, generator=rng).to(dtype).double().requires_grad_()


def close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == dtype
    tolerance, largest = TOLERANCES[dtype], float(expected.detach().abs().max())
    torch.testing.assert_close(
        found.detach().cpu().double(), expected.detach(), rtol=tolerance, atol=min(tolerance, 1e-5) * largest
    )
