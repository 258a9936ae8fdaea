"""Other forms of a dictionary compute what the first one did."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train.dictionary import Dictionary
from train.equivalents import count_in_decoder_norms, uncentered, ungated
from train.sparsity import make_sparsity
from train.sparsity.jumprelu import JumpReLU

LATENTS = 24


def random_dictionary(method: str, seed: int, centered: bool = True) -> tuple[Dictionary, torch.Tensor]:
    """In float64, so that a latent at its threshold is next to impossible; and rows to read."""
    rng = torch.Generator().manual_seed(seed)
    dictionary = Dictionary(7, 7, make_sparsity(method, 5, LATENTS), centered, skip=True).double().eval()
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng, dtype=torch.float64))
        for buffer in dictionary.buffers():
            buffer.fill_(0.4)
    return dictionary, torch.randn(50, 7, generator=rng, dtype=torch.float64)


def same(one: Dictionary, other: Dictionary, x_BP: torch.Tensor, factor_F: torch.Tensor | float = 1.0) -> None:
    """`other` has `factor_F` times the latents of `one`, and the same output."""
    with torch.inference_mode():
        torch.testing.assert_close(one.encode(x_BP).dense() * factor_F, other.encode(x_BP).dense())
        torch.testing.assert_close(one(x_BP), other(x_BP))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), centered=st.booleans())
def test_a_gated_is_a_jumprelu(seed: int, centered: bool) -> None:
    dictionary, x_BP = random_dictionary("gated", seed, centered)
    found = ungated(dictionary)
    assert isinstance(found.sparsity, JumpReLU)
    assert not found.training
    same(dictionary, found, x_BP)


@pytest.mark.parametrize("method", ["relu", "jumprelu", "topk", "batchtopk"])
def test_centring_can_move_into_the_bias(method: str) -> None:
    dictionary, x_BP = random_dictionary(method, 0)
    found = uncentered(dictionary)
    assert not found.centered
    assert dictionary.centered
    same(dictionary, found, x_BP)


def test_latents_counted_in_decoder_norms() -> None:
    """A ReLU does not care; the same latents, each larger by its decoder row's norm."""
    dictionary, x_BP = random_dictionary("relu", 0)
    norms_F = dictionary.W_dec.detach().norm(dim=1)
    found, _ = random_dictionary("relu", 0)
    count_in_decoder_norms(found)
    torch.testing.assert_close(found.W_dec.norm(dim=1), torch.ones(LATENTS, dtype=torch.float64))
    same(dictionary, found, x_BP, norms_F)
