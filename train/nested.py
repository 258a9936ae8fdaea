"""Matryoshka: one dictionary whose parts must reconstruct by themselves, for any sparsity."""

import torch
from torch import Tensor

from train.config import MatryoshkaSpec
from train.dictionary import Codes, Dictionary
from train.kernels import DensePattern, SparsePattern
from train.ranks import Ranks


def nested_reconstructions(dictionary: Dictionary, codes: Codes, spec: MatryoshkaSpec, l0: float) -> list[Tensor]:
    """`x̂` of every nested part, smallest first, without bias or skip; the last one is the whole dictionary's.

    Each active latent belongs to the smallest part that holds it, so all parts together cost one decoder product.
    """
    if spec.prefixes is not None:
        group_N, parts = _by_prefix(codes, spec.prefixes, dictionary.ranks)
    else:
        assert spec.levels is not None
        group_N, parts = _by_rank(codes, spec.levels, l0, dictionary.ranks)
    partial, so_far = [], None
    for part in range(parts):
        pattern, values = codes.pattern.where(group_N == part, codes.values_N)
        added_BR = dictionary.ranks.over_latents(pattern.product(values, dictionary.W_dec))
        so_far = added_BR if so_far is None else so_far + added_BR
        partial.append(so_far)
    return partial


def _by_prefix(codes: Codes, shares: list[float], ranks: Ranks) -> tuple[Tensor, int]:
    """Part of each active latent by its number (Bussmann et al. 2025)."""
    own, device = codes.pattern.latents, codes.values_N.device
    ends = torch.tensor([round(share * own * ranks.latent_shares) for share in shares], device=device)
    latents_F = torch.arange(own, device=device) + own * ranks.latent_share
    return codes.pattern.pick(torch.searchsorted(ends, latents_F, right=True)), len(shares)


def _by_rank(codes: Codes, levels: list[float], l0: float, ranks: Ranks) -> tuple[Tensor, int]:
    """Part of each active latent by its rank among its row's (arXiv 2512.05534, eq. 9)."""
    ends = [max(1, round(level * l0)) for level in levels[:-1]]
    values_N, pattern = codes.values_N.detach(), codes.pattern
    group_N = torch.zeros_like(values_N, dtype=torch.int64)
    if not ends:
        return group_N, len(levels)
    largest_BM = ranks.largest_of_rows(_by_row(codes, ends[-1]), ends[-1])
    for end in ends:
        least_B = largest_BM[:, end - 1]
        least_N = least_B[:, None] if isinstance(pattern, DensePattern) else least_B[pattern.rows_N]
        group_N += values_N < least_N
    return group_N, len(levels)


def _by_row(codes: Codes, most: int) -> Tensor:
    """The values of each row, of a sparse one the largest only: `(B, F or most)`."""
    values_N = codes.values_N.detach()
    if isinstance(codes.pattern, DensePattern):
        return values_N
    pattern: SparsePattern = codes.pattern
    by_value = values_N.argsort(descending=True)
    order = by_value[pattern.rows_N[by_value].argsort(stable=True)]
    rank_N = torch.arange(len(order), device=order.device) - pattern.offsets_B1[pattern.rows_N[order]]
    order, rank_N = order[rank_N < most], rank_N[rank_N < most]
    rows_BM = values_N.new_full((pattern.rows, most), -torch.inf)
    rows_BM[pattern.rows_N[order], rank_N] = values_N[order]
    return rows_BM
