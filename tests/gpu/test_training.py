"""What only a GPU can show: its kernels at real sizes, its memory, and whole training runs."""

from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch

from harvest.store import Store
from tests.products import check_products
from tests.synthetic import Synthetic, synthetic_store
from tests.training import command, metrics_of, run, spec_of
from train.kernels import SparsePattern, pattern

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: PyTorch sees no CUDA device"),
]


@pytest.fixture(params=["triton", "embedding bags"])
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Either way to compute the products on a GPU."""
    if request.param == "triton":
        pytest.importorskip("triton", reason="Triton is not installed here")
        yield request.param
    else:
        with mock.patch.object(pattern, "_kernels", return_value=None):
            yield request.param


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "latents", "width"), [(1, 1, 1), (300, 1000, 769), (64, 4096, 512)])
def test_products_and_gradients(kernels: str, dtype: torch.dtype, rows: int, latents: int, width: int) -> None:
    if kernels == "embedding bags" and dtype == torch.bfloat16:
        pytest.skip("training computes these products in float32")
    check_products("cuda", dtype, rows, latents, width)


def large_step() -> Callable[[], tuple[torch.Tensor, ...]]:
    """A function that computes both products and all gradients for 2,048 rows of 128 of 1,024 latents, 512 wide."""
    rng = torch.Generator().manual_seed(0)
    x_BD, W_FD = torch.randn(2048, 512, generator=rng).cuda(), torch.randn(1024, 512, generator=rng).cuda()
    x_BD.requires_grad_()
    W_FD.requires_grad_()
    made = SparsePattern.from_topk(torch.rand(2048, 1024, generator=rng).topk(128).indices.cuda(), 1024)

    def step() -> tuple[torch.Tensor, ...]:
        fresh = SparsePattern(made.offsets_B1, made.latents_N, made.latents)
        out_BD = fresh.product(fresh.sampled(x_BD, W_FD), W_FD)
        return (out_BD, *torch.autograd.grad(out_BD.square().sum(), (x_BD, W_FD)))

    return step


@pytest.mark.usefixtures("kernels")
def test_the_same_bytes_each_time() -> None:
    step = large_step()
    first = step()
    for _ in range(5):
        assert all(torch.equal(one, other) for one, other in zip(first, step(), strict=True))


@pytest.mark.usefixtures("kernels")
def test_memory_grows_with_active_latents_not_with_their_width() -> None:
    step = large_step()
    step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    assert torch.cuda.max_memory_allocated() - before < 2048 * 128 * 512 * 4 / 8


def test_places_beyond_the_reach_of_int32() -> None:
    """The last row of a W with more than 2^31 elements: read by both products, written by their gradient."""
    pytest.importorskip("triton", reason="Triton is not installed here")
    latents, width = 2**20 + 1, 2056
    if torch.cuda.mem_get_info()[0] < 5 * latents * width * 2:
        pytest.skip("needs 22 GB of free GPU memory")
    W_FD = torch.zeros(latents, width, device="cuda", dtype=torch.bfloat16)
    W_FD[-1] = 1
    W_FD.requires_grad_()
    last = SparsePattern.from_topk(torch.tensor([[latents - 1]], device="cuda"), latents)
    x_BD = torch.ones(1, width, device="cuda", dtype=torch.bfloat16)
    found_N = last.sampled(x_BD, W_FD)
    assert found_N.tolist() == [width]
    out_BD = last.product(torch.ones_like(found_N), W_FD)
    assert torch.equal(out_BD, x_BD)
    out_BD.sum().backward()
    assert W_FD.grad is not None
    assert torch.equal(W_FD.grad[-1], x_BD[0])
    assert int(W_FD.grad.count_nonzero()) == width


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return synthetic_store(tmp_path_factory.mktemp("store"), Synthetic())


METHODS = {
    "topk": {"sparsity": {"topk": {"l0": 3}}},
    "batchtopk": {"sparsity": {"batchtopk": {"l0": 3}}},
    "matryoshka": {"sparsity": {"batchtopk": {"l0": 3}}, "matryoshka": {"prefixes": [0.25, 0.5, 1]}},
    "auxk": {"sparsity": {"topk": {"l0": 3}}, "auxk": {"dead_after": 1000}},
    "relu": {"sparsity": {"relu": {"l0": 3}}},
    "jumprelu": {"sparsity": {"jumprelu": {"l0": 3}}},
    "gated": {"sparsity": {"gated": {"l0": 3}}},
}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_repeated_byte_by_byte_and_learns_what_a_cpu_learns(store: Store, tmp_path: Path, method: str) -> None:
    spec = spec_of(**METHODS[method])
    first, second = run(spec, store, tmp_path / "first"), run(spec, store, tmp_path / "second")
    weights = [(output / "sae_weights.safetensors").read_bytes() for output in (first, second)]
    assert weights[0] == weights[1]
    assert metrics_of(first) == metrics_of(second)
    command(spec, store, tmp_path / "cpu")
    on_gpu, on_cpu = (metrics_of(output)[-1] for output in (first, tmp_path / "cpu" / "output"))
    assert on_gpu["unexplained"] == pytest.approx(on_cpu["unexplained"], rel=0.1)
    assert on_gpu["l0"] == pytest.approx(on_cpu["l0"], rel=0.1)
