"""Matryoshka: one dictionary whose parts must reconstruct by themselves, for any sparsity."""

import torch
from torch import Tensor

from train.config import MatryoshkaSpec
from train.dictionary import Codes, Dictionary
from train.kernels import DensePattern, SparsePattern


def nested_reconstructions(dictionary: Dictionary, codes: Codes, spec: MatryoshkaSpec, l0: float) -> list[Tensor]:
    """`x̂` of every nested part, smallest first, without bias or skip; the last one is the whole dictionary's.

    Each active latent belongs to the smallest part that holds it, so all parts together cost one decoder product.
    """
    if spec.prefixes is not None:
        group_N, parts = _by_prefix(codes, spec.prefixes)
    else:
        assert spec.levels is not None
        group_N, parts = _by_rank(codes, spec.levels, l0)
    partial, so_far = [], None
    for part in range(parts):
        pattern, values = codes.pattern.where(group_N == part, codes.values_N)
        added_BR = pattern.product(values, dictionary.W_dec)
        so_far = added_BR if so_far is None else so_far + added_BR
        partial.append(so_far)
    return partial


def _by_prefix(codes: Codes, shares: list[float]) -> tuple[Tensor, int]:
    """Part of each active latent by its number (Bussmann et al. 2025)."""
    pattern = codes.pattern
    ends = torch.tensor([round(share * pattern.latents) for share in shares], device=codes.values_N.device)
    latents_F = torch.arange(pattern.latents, device=codes.values_N.device)
    return pattern.pick(torch.searchsorted(ends, latents_F, right=True)), len(shares)


def _by_rank(codes: Codes, levels: list[float], l0: float) -> tuple[Tensor, int]:
    """Part of each active latent by its rank among its row's (arXiv 2512.05534, eq. 9)."""
    ends = torch.tensor([max(1, round(level * l0)) for level in levels[:-1]], device=codes.values_N.device)
    rank_N = _ranks(codes)
    return torch.searchsorted(ends, rank_N.contiguous(), right=True), len(levels)


def _ranks(codes: Codes) -> Tensor:
    """Rank of each value in its row, 0 for the largest."""
    values_N = codes.values_N.detach()
    if isinstance(codes.pattern, DensePattern):
        return values_N.argsort(dim=1, descending=True).argsort(dim=1)
    pattern: SparsePattern = codes.pattern
    by_value = values_N.argsort(descending=True, stable=True)
    order = by_value[pattern.rows_N[by_value].argsort(stable=True)]
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order), device=order.device) - pattern.offsets_B1[pattern.rows_N[order]]
    return ranks
