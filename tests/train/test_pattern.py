"""The sparse products against dense float64 formulae."""

import pathlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from train.kernels import DensePattern, Pattern, SparsePattern, pattern_of, places

few = settings(derandomize=True, max_examples=40, deadline=None)
seeds = st.integers(0, 2**32)
sizes = st.tuples(st.integers(1, 7), st.integers(1, 9), st.integers(1, 6))
"""Rows, latents, width."""

Made = tuple[Pattern, Tensor, Callable[[Tensor], Tensor]]
"""A pattern, its mask `(B, F)`, and what takes a dense `(B, F)` to the pattern's own values."""


def topk(rng: torch.Generator, rows: int, latents: int) -> Made:
    k = int(torch.randint(1, latents + 1, (), generator=rng))
    indices_BK = torch.rand(rows, latents, generator=rng).topk(k, sorted=False).indices
    mask_BF = torch.zeros(rows, latents, dtype=torch.bool).scatter_(1, indices_BK, True)
    return SparsePattern.from_topk(indices_BK, latents), mask_BF, lambda dense: dense.gather(1, indices_BK).flatten()


def ragged_mask(rng: torch.Generator, rows: int, latents: int) -> Tensor:
    """Rows of very different length; some are empty, now and then all of them."""
    density_B1 = torch.rand(rows, 1, generator=rng) * (torch.rand(rows, 1, generator=rng) < 0.7)
    return torch.rand(rows, latents, generator=rng) < density_B1


def ragged(rng: torch.Generator, rows: int, latents: int) -> Made:
    mask_BF = ragged_mask(rng, rows, latents)
    return SparsePattern.from_flat(places(mask_BF), rows, latents), mask_BF, lambda dense: dense[mask_BF]


def masked(rng: torch.Generator, rows: int, latents: int) -> Made:
    mask_BF = ragged_mask(rng, rows, latents)
    return DensePattern(mask_BF), mask_BF, lambda dense: dense * mask_BF


makers = st.sampled_from([topk, ragged, masked])
Maker = Callable[[torch.Generator, int, int], Made]


def leaf(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=rng, dtype=torch.float64).requires_grad_()


@few
@given(makers, sizes, seeds)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_product_and_gradients(
    dtype: torch.dtype, tolerance: float, maker: Maker, size: tuple[int, int, int], seed: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    rows, latents, width = size
    pattern, mask_BF, pick = maker(rng, rows, latents)
    values_BF, W_FD, upstream_BD = leaf(rng, rows, latents), leaf(rng, latents, width), leaf(rng, rows, width)
    expected_BD = (values_BF * mask_BF) @ W_FD
    by_values, by_W = torch.autograd.grad(expected_BD, (values_BF, W_FD), upstream_BD)

    values, W = pick(values_BF.detach()).to(dtype).requires_grad_(), W_FD.detach().to(dtype).requires_grad_()
    found_BD = pattern.product(values, W)
    gradients = torch.autograd.grad(found_BD, (values, W), upstream_BD.to(dtype))

    close(found_BD, expected_BD, tolerance)
    close(gradients[0], pick(by_values), tolerance)
    close(gradients[1], by_W, tolerance)


@few
@given(makers, sizes, seeds)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_sampled_and_gradients(
    dtype: torch.dtype, tolerance: float, maker: Maker, size: tuple[int, int, int], seed: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    rows, latents, width = size
    pattern, mask_BF, pick = maker(rng, rows, latents)
    x_BD, W_FD, upstream_BF = leaf(rng, rows, width), leaf(rng, latents, width), leaf(rng, rows, latents)
    expected_BF = (x_BD @ W_FD.T) * mask_BF
    by_x, by_W = torch.autograd.grad(expected_BF, (x_BD, W_FD), upstream_BF)

    x, W = x_BD.detach().to(dtype).requires_grad_(), W_FD.detach().to(dtype).requires_grad_()
    found = pattern.sampled(x, W)
    gradients = torch.autograd.grad(found, (x, W), pick(upstream_BF.detach()).to(dtype))

    close(found, pick(expected_BF), tolerance)
    close(gradients[0], by_x, tolerance)
    close(gradients[1], by_W, tolerance)


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found.detach().double(), expected.detach(), rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("maker", [topk, ragged, masked])
def test_gradcheck(maker: Maker) -> None:
    """Gradients agree with finite differences, also through both products, as a training step chains them."""
    rng = torch.Generator().manual_seed(3)
    pattern, _, pick = maker(rng, 5, 8)
    values = pick(leaf(rng, 5, 8).detach()).requires_grad_()
    x_BD, encoder_FD, decoder_FD, bias_F = leaf(rng, 5, 4), leaf(rng, 8, 4), leaf(rng, 8, 3), leaf(rng, 8)
    assert torch.autograd.gradcheck(pattern.product, (values, decoder_FD))
    assert torch.autograd.gradcheck(pattern.sampled, (x_BD, encoder_FD))
    assert torch.autograd.gradcheck(
        lambda x, encoder, bias, decoder: pattern.product(pattern.sampled(x, encoder) + pattern.pick(bias), decoder),
        (x_BD, encoder_FD, bias_F, decoder_FD),
    )


@few
@given(sizes, seeds)
def test_where_a_latent_cannot_fire_only_a_surrogate_gradient_passes(size: tuple[int, int, int], seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    rows, latents, width = size
    mask_BF = ragged_mask(rng, rows, latents)
    fires_BF = mask_BF & (torch.rand(rows, latents, generator=rng) < 0.5)
    pattern = replace(SparsePattern.from_flat(places(mask_BF), rows, latents), fires_N=fires_BF[mask_BF])
    values_BF, W_FD, upstream_BD = leaf(rng, rows, latents), leaf(rng, latents, width), leaf(rng, rows, width)
    x_BD = leaf(rng, rows, width)

    values = (values_BF * fires_BF)[mask_BF].detach().requires_grad_()
    found_BD = pattern.product(values, W_FD)
    by_values, by_W = torch.autograd.grad(found_BD, (values, W_FD), upstream_BD)
    close(found_BD, (values_BF * fires_BF) @ W_FD, 1e-13)
    close(by_W, (values_BF * fires_BF).T @ upstream_BD, 1e-13)
    close(by_values, (upstream_BD @ W_FD.T)[mask_BF], 1e-13)

    found = pattern.sampled(x_BD, W_FD)
    close(found, (x_BD @ W_FD.T)[mask_BF], 1e-13)
    upstream_BF = leaf(rng, rows, latents)
    by_x, by_W = torch.autograd.grad(found, (x_BD, W_FD), upstream_BF[mask_BF])
    close(by_x, (upstream_BF * fires_BF) @ W_FD, 1e-13)
    close(by_W, (upstream_BF * fires_BF).T @ x_BD, 1e-13)


@few
@given(makers, sizes, seeds)
def test_dense_pick_count_where(maker: Maker, size: tuple[int, int, int], seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    rows, latents, width = size
    pattern, mask_BF, pick = maker(rng, rows, latents)
    values_BF, bias_F, W_FD = leaf(rng, rows, latents), leaf(rng, latents), leaf(rng, latents, width)
    assert (pattern.rows, pattern.latents) == (rows, latents)
    assert torch.equal(pattern.dense(pick(values_BF)), values_BF * mask_BF)

    picked = pattern.pick(bias_F)
    assert torch.equal(pattern.dense(picked), bias_F * mask_BF)
    assert torch.equal(picked, pick(bias_F.expand(rows, latents))), "nothing outside the pattern may look active"
    if picked.requires_grad:
        (by_bias,) = torch.autograd.grad(picked.sum(), bias_F)
        assert torch.equal(by_bias, mask_BF.sum(0).double())

    keep_BF = torch.rand(rows, latents, generator=rng) < 0.5
    assert torch.equal(pattern.count(pick(keep_BF.double()) > 0), (mask_BF & keep_BF).sum(0))
    kept, kept_values = pattern.where(pick(keep_BF.double()) > 0, pick(values_BF))
    assert torch.equal(kept.dense(kept_values), values_BF * (mask_BF & keep_BF))
    close(kept.product(kept_values, W_FD), (values_BF * (mask_BF & keep_BF)) @ W_FD, 1e-13)


@few
@given(sizes, seeds)
def test_a_mask_becomes_a_pattern_of_its_places(size: tuple[int, int, int], seed: int) -> None:
    mask_BF = ragged_mask(torch.Generator().manual_seed(seed), size[0], size[1])
    assert places(mask_BF).tolist() == [place for place, active in enumerate(mask_BF.flatten().tolist()) if active]
    pattern = pattern_of(mask_BF)
    ones = torch.ones(mask_BF.shape if isinstance(pattern, DensePattern) else int(mask_BF.sum()))
    assert torch.equal(pattern.dense(ones) > 0, mask_BF)


def test_few_active_latents_are_kept_sparse_and_many_dense() -> None:
    mask_BF = torch.zeros(4, 100, dtype=torch.bool)
    mask_BF[:, :3] = True
    assert isinstance(pattern_of(mask_BF), SparsePattern)
    assert isinstance(pattern_of(~mask_BF), DensePattern)


def test_gradients_of_dense_and_where() -> None:
    rng = torch.Generator().manual_seed(0)
    for maker in (topk, ragged, masked):
        pattern, _, pick = maker(rng, 4, 6)
        values, keep = pick(leaf(rng, 4, 6).detach()).requires_grad_(), pick(torch.ones(4, 6).double()) > 0
        keep = keep & (torch.rand(keep.shape, generator=rng) < 0.5)
        assert torch.autograd.gradcheck(pattern.dense, (values,))
        (by_values,) = torch.autograd.grad(pattern.where(keep, values)[1].sum(), values)
        assert torch.equal(by_values, keep.double())


def test_memory_grows_with_active_latents_not_with_their_width() -> None:
    """Forward and backward of both products stay far below the N·D floats that a gather of decoder rows takes."""
    with ProcessPoolExecutor(1, get_context("spawn")) as fresh:  # one that has no freed memory to use again
        gathered, by_gather, by_step = fresh.submit(memory_of_a_gather_and_of_a_step).result()
    assert by_gather > 0.9 * gathered, "the measurement sees such a gather"
    assert by_step < gathered / 4


def memory_of_a_gather_and_of_a_step() -> tuple[int, int, int]:
    """Bytes: what a gather of decoder rows takes in theory, what it took, and what a step took."""
    rows, k, latents, width = 2048, 128, 1024, 512
    rng = torch.Generator().manual_seed(0)
    x_BD = torch.randn(rows, width, generator=rng).requires_grad_()
    W_FD = torch.randn(latents, width, generator=rng).requires_grad_()
    pattern = SparsePattern.from_topk(torch.rand(rows, latents, generator=rng).topk(k).indices, latents)

    def step() -> None:
        torch.autograd.backward(pattern.product(pattern.sampled(x_BD, W_FD), W_FD).sum())

    found = rows * k * width * 4, peak_growth(lambda: W_FD[pattern.latents_N].sum()), peak_growth(step)
    assert x_BD.grad is not None
    assert W_FD.grad is not None
    return found


def peak_growth(work: Callable[[], object]) -> int:
    """Bytes by which resident memory was higher during `work` than before."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    before = memory("VmRSS")
    work()
    return memory("VmHWM") - before


def memory(field: str) -> int:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
