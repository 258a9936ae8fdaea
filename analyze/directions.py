"""Decoder directions, and products of many directions with many others.

Shapes: F latents, R width written, M and N directions of width D, b of them at a time.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from train.dictionary import Dictionary

BLOCK_PLACES = 2**24
"""Entries of a product that are held at a time: 64 MiB of them."""


def decoder_directions(dictionary: Dictionary, widths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Unit decoder rows `(F, R)`, and the weight `(R,)` that each dimension was given before they were made unit.

    Where one site is written these are the decoder's directions and the weights are 1. Several are concatenated, each
    with a root mean squared decoder row of 1: else the site whose activations are largest would decide every angle.
    """
    W_dec_FR = dictionary.W_dec.detach()
    parts = torch.split(W_dec_FR, list(widths), 1)
    norms = [part.square().sum(1).mean().sqrt().clamp_min(1e-12) if len(parts) > 1 else 1.0 for part in parts]
    weight_R = torch.cat([torch.ones(part.shape[1]) / norm for part, norm in zip(parts, norms, strict=True)])
    return normalize(W_dec_FR * weight_R), weight_R


def products(rows_MD: Tensor, others_ND: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """`rows @ others.T`, `(b, N)` at a time, with the rows that each is of. Memory is `BLOCK_PLACES`."""
    step = max(1, BLOCK_PLACES // len(others_ND))
    for start in range(0, len(rows_MD), step):
        rows = slice(start, min(start + step, len(rows_MD)))
        yield rows, rows_MD[rows] @ others_ND.T


def largest(rows_MD: Tensor, others_ND: Tensor, count: int, but_itself: bool = False) -> tuple[Tensor, Tensor]:
    """The `count` largest products of each row, largest first, and which of the others they are with: both `(M, count)`
    on the CPU. NaN and -1 where there are no more. `but_itself`: both are the same, and a row's own product is none."""
    values_MC = torch.full((len(rows_MD), count), torch.nan)
    which_MC = torch.full((len(rows_MD), count), -1, dtype=torch.int32)
    there = min(count, len(others_ND) - but_itself)
    if there < 1:
        return values_MC, which_MC
    for rows, product_bN in products(rows_MD, others_ND):
        if but_itself:
            at = torch.arange(rows.start, rows.stop, device=product_bN.device)
            product_bN[at - rows.start, at] = -torch.inf
        values, which = product_bN.topk(there, 1)
        values_MC[rows, :there], which_MC[rows, :there] = values.cpu(), which.int().cpu()
    return values_MC, which_MC
