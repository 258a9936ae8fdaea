"""The Triton kernels without a GPU: what they compute, in Triton's interpreter, and that they compile for real ones."""

import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.pool import Pool
from unittest import mock

import pytest
import torch

from tests.products import check_products
from train.kernels import pattern

triton = pytest.importorskip("triton", reason="Triton is not installed here")


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Pool]:
    """A process that interprets kernels: Triton must be told before it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        pool = multiprocessing.get_context("spawn").Pool(1, torch.set_num_threads, (1,))
    with pool:
        yield pool


def interpreted(check: Callable[..., None], *arguments: object) -> None:
    """Run a check on CPU tensors as if they lay on a GPU."""
    from train.kernels import triton_products

    kernels = mock.Mock(wraps=triton_products)
    with mock.patch.object(pattern, "_kernels", return_value=kernels):
        check("cpu", *arguments)
    assert kernels.product.called
    assert kernels.sampled.called


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "latents", "width"),
    [
        pytest.param(1, 1, 1, id="smallest"),
        pytest.param(5, 40, 7, id="more active latents than a tile holds"),
        pytest.param(21, 3, 128, id="a latent active in more rows than a tile holds"),
        pytest.param(4, 33, 300, id="a width of some tiles, not a power of two"),
    ],
)
def test_products_and_gradients(interpreter: Pool, dtype: torch.dtype, rows: int, latents: int, width: int) -> None:
    interpreter.apply(interpreted, (check_products, dtype, rows, latents, width))


def check_nothing_active(device: str) -> None:
    rng = torch.Generator().manual_seed(0)
    nothing = pattern.SparsePattern.from_flat(torch.zeros(0, dtype=torch.int64, device=device), 3, 4)
    x_BD, W_FD = torch.randn(3, 5, generator=rng).to(device), torch.randn(4, 5, generator=rng).to(device)
    W_FD.requires_grad_()
    out_BD = nothing.product(nothing.sampled(x_BD, W_FD), W_FD)
    assert torch.equal(out_BD, torch.zeros_like(out_BD))
    out_BD.sum().backward()
    assert W_FD.grad is not None
    assert torch.equal(W_FD.grad, torch.zeros_like(W_FD))


def test_a_batch_in_which_nothing_is_active(interpreter: Pool) -> None:
    interpreter.apply(interpreted, (check_nothing_active,))


@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize("dtype", ["fp64", "fp32", "bf16"])
def test_kernels_compile_for_gpus(
    dtype: str, architecture: int, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter takes code that the compiler refuses. Pointers and width as in training: multiples of 16."""
    from train.kernels import triton_products as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))  # or nothing may be compiled
    target = triton.backends.compiler.GPUTarget("cuda", architecture, 32)
    tile = {"SUM": kernels._sum_in(torch.empty(0, dtype=torch.float64 if dtype == "fp64" else torch.float32))}
    tile |= {"ENTRIES": kernels.ENTRIES, "COLUMNS": kernels.COLUMNS}
    for kernel in (kernels._product_kernel, kernels._sampled_kernel):
        types = {"offsets_B1": "*i64", "rows_N": "*i64", "latents_N": "*i64", "width": "i32", "count": "i32"}
        signature = {name: "constexpr" if name in tile else types.get(name, f"*{dtype}") for name in kernel.arg_names}
        multiples = {(at,): [["tt.divisibility", 16]] for at, name in enumerate(kernel.arg_names) if name not in tile}
        compiled = triton.compile(triton.compiler.ASTSource(kernel, signature, tile, multiples), target=target)
        assert "atom" not in compiled.asm["ptx"], "sums in the order of arrival: not the same each time"
        assert "red.global" not in compiled.asm["ptx"]
        assert compiled.asm["cubin"]
