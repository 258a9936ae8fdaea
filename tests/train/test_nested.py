"""Matryoshka's parts against sums over dense latents."""

import pytest
import torch
from torch import Tensor

from train.config import MatryoshkaSpec
from train.dictionary import Codes, Dictionary
from train.kernels import DensePattern, SparsePattern, places
from train.nested import nested_reconstructions
from train.sparsity import make_sparsity

ROWS, LATENTS, WIDTH = 40, 30, 5


def codes_of(active: float, dense: bool) -> Codes:
    torch.manual_seed(0)
    values_BF = torch.rand(ROWS, LATENTS, dtype=torch.float64) * (torch.rand(ROWS, LATENTS) < active)
    mask_BF = values_BF > 0
    mask_BF[:, 3] = True  # a place may be looked at and hold nothing
    pattern = DensePattern(mask_BF) if dense else SparsePattern.from_flat(places(mask_BF), ROWS, LATENTS)
    values_N = values_BF if dense else values_BF[mask_BF]
    return Codes(pattern, values_N, values_N)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("active", [0.02, 0.3])
@pytest.mark.parametrize("parts", [{"prefixes": [0.1, 0.5, 1]}, {"levels": [0.25, 0.75, 1]}, {"levels": [1]}])
def test_parts_are_what_their_latents_alone_give(parts: dict[str, list[float]], active: float, dense: bool) -> None:
    codes = codes_of(active, dense)
    dictionary = Dictionary(WIDTH, WIDTH, make_sparsity("topk", 4, LATENTS), centered=True).double()
    dictionary.start(torch.Generator().manual_seed(0))
    found = nested_reconstructions(dictionary, codes, MatryoshkaSpec.model_validate(parts), l0=4)
    latents_BF = codes.dense()
    for part, share in zip(found, parts.get("prefixes") or parts["levels"], strict=True):
        if "prefixes" in parts:
            kept_BF = latents_BF * (torch.arange(LATENTS) < round(share * LATENTS))
        else:
            kept_BF = latents_BF if share == 1 else strongest(latents_BF, round(share * 4))
        torch.testing.assert_close(part, kept_BF @ dictionary.W_dec)


def strongest(latents_BF: Tensor, count: int) -> Tensor:
    kept_BF = torch.zeros_like(latents_BF)
    for row, latents_F in enumerate(latents_BF):
        for latent in latents_F.argsort(descending=True)[:count]:
            kept_BF[row, latent] = latents_F[latent]
    return kept_BF
