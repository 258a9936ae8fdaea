"""The sparse products as Triton kernels, for a GPU.

Nothing is added atomically: each program writes places that no other one writes, and sums in an order that the tile
sizes alone fix. They are constants, not tuned at run time, so the same step gives the same bytes each time. A tile of
products is accumulated and summed once at the end, in float32 (float64 where an operand is); nothing of size N·D
exists. Places in memory are counted in int64, whatever B·F or F·D.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import torch
import triton
import triton.language as tl
from torch import Tensor

ENTRIES = 16
"""Active latents in a tile: as many rows of W are on their way from memory at once."""
COLUMNS = 128
"""Of D in a tile: a warp loads 128 float32 at a time."""


def product(offsets_B1: Tensor, latents_N: Tensor, values_N: Tensor, W_FD: Tensor) -> Tensor:
    """`Σ_n values_n W[latents_n]` over `n` in `offsets[b]:offsets[b+1]`: `(B, D)`."""
    rows, width = len(offsets_B1) - 1, W_FD.shape[1]
    W_FD, values_N = W_FD.contiguous(), values_N.contiguous()
    out_BD = W_FD.new_empty(rows, width)
    grid = (rows, triton.cdiv(width, COLUMNS))
    with torch.cuda.device_of(W_FD):  # type: ignore[no-untyped-call]
        _product_kernel[grid](offsets_B1, latents_N, values_N, W_FD, out_BD, width, _sum_in(W_FD), ENTRIES, COLUMNS)
    return out_BD


def sampled(rows_N: Tensor, latents_N: Tensor, x_BD: Tensor, W_FD: Tensor) -> Tensor:
    """`<x[rows_n], W[latents_n]>`: `(N,)`."""
    count, width = len(latents_N), W_FD.shape[1]
    x_BD, W_FD = x_BD.contiguous(), W_FD.contiguous()
    out_N = x_BD.new_empty(count)
    grid = (triton.cdiv(count, ENTRIES),)
    with torch.cuda.device_of(W_FD):  # type: ignore[no-untyped-call]
        _sampled_kernel[grid](rows_N, latents_N, x_BD, W_FD, out_N, count, width, _sum_in(W_FD), ENTRIES, COLUMNS)
    return out_N


def _sum_in(operand: Tensor) -> tl.dtype:
    return tl.float64 if operand.dtype == torch.float64 else tl.float32


@triton.jit
def _product_kernel(
    offsets_B1,
    latents_N,
    values_N,
    W_FD,
    out_BD,
    width,
    SUM: tl.constexpr,
    ENTRIES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One program for each row and stretch of columns."""
    row = tl.program_id(0).to(tl.int64)
    column_D = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside_D = column_D < width
    begin = tl.load(offsets_B1 + row)
    end = tl.load(offsets_B1 + row + 1)
    sum_ND = tl.full((ENTRIES, COLUMNS), 0, SUM)
    for first in range(begin, end, ENTRIES):
        entry_N = first + tl.arange(0, ENTRIES)
        inside_N = entry_N < end
        latent_N = tl.load(latents_N + entry_N, mask=inside_N, other=0).to(tl.int64)
        value_N = tl.load(values_N + entry_N, mask=inside_N, other=0).to(SUM)
        W_ND = tl.load(
            W_FD + latent_N[:, None] * width + column_D[None, :], mask=inside_N[:, None] & inside_D[None, :], other=0
        )
        sum_ND += value_N[:, None] * W_ND.to(SUM)
    tl.store(out_BD + row * width + column_D, tl.sum(sum_ND, 0), mask=inside_D)


@triton.jit
def _sampled_kernel(
    rows_N, latents_N, x_BD, W_FD, out_N, count, width, SUM: tl.constexpr, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr
):
    """One program for each stretch of active latents, so rows may have as many of them as they like.

    Neighbours mostly share a row, whose x is then in the cache.
    """
    entry_N = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    inside_N = entry_N < count
    row_N = tl.load(rows_N + entry_N, mask=inside_N, other=0).to(tl.int64)
    latent_N = tl.load(latents_N + entry_N, mask=inside_N, other=0).to(tl.int64)
    sum_ND = tl.full((ENTRIES, COLUMNS), 0, SUM)
    for first in range(0, width, COLUMNS):
        column_D = first + tl.arange(0, COLUMNS)
        inside_ND = inside_N[:, None] & (column_D < width)[None, :]
        x_ND = tl.load(x_BD + row_N[:, None] * width + column_D[None, :], mask=inside_ND, other=0)
        W_ND = tl.load(W_FD + latent_N[:, None] * width + column_D[None, :], mask=inside_ND, other=0)
        sum_ND += x_ND.to(SUM) * W_ND.to(SUM)
    tl.store(out_N + entry_N, tl.sum(sum_ND, 1), mask=inside_N)
