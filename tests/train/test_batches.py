"""Shuffled reading: what is read, in which order, with how much memory."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harvest.errors import UserError
from harvest.layout import Layout
from harvest.store import Store
from tests.synthetic import Synthetic, synthetic_store
from tests.training import ROOT
from train.batches import Batch, Batches
from train.pools import INDEX_BYTES

few = settings(derandomize=True, max_examples=60, deadline=None)


class InMemory:
    """The part of a store that batches use, over an array."""

    dtype, remote = torch.float32, False

    def __init__(self, values: torch.Tensor, chunk: int) -> None:
        self.values, self.rows, self.widths = values, len(values), {"x": values.shape[1]}
        self.layout = Layout(chunk, chunk)

    def read(self, site: str, start: int, stop: int) -> torch.Tensor:
        assert site == "x"
        return self.values[start:stop]


def batches_of(
    values: torch.Tensor,
    chunk: int,
    batch: int,
    pool: int = 2**30,
    window: int | None = None,
    kind: type[Batches] = Batches,
    **options: Any,
) -> Batches:
    """Pools of `pool` chunks and, if given, the least memory in which `window` rows can be held."""
    row = values.shape[1] * values.itemsize
    options = {"seed": 0, "pool_bytes": pool * chunk * (row + INDEX_BYTES), **options}
    if window is not None:
        options["memory"] = memory_for(window, row, chunk, batch // options.get("world", 1), pool, len(values))
    return kind(cast(Store, InMemory(values, chunk)), ["x"], batch, **options)


def memory_for(window: int, row: int, chunk: int, batch: int, pool: int, rows: int) -> int:
    """Two windows, three batches, four chunks a reader, and the numbers of the pool's rows."""
    return 2 * window * (row + INDEX_BYTES) + 3 * batch * row + 16 * chunk * row + INDEX_BYTES * min(rows, pool * chunk)


def numbers(rows: int) -> torch.Tensor:
    return torch.arange(rows, dtype=torch.float32)[:, None]


@st.composite
def sizes(draw: st.DrawFn) -> dict[str, Any]:
    """Any store, batch and memory bound: from one chunk in memory to all of them."""
    rows, chunk = draw(st.integers(1, 90)), draw(st.integers(1, 20))
    batch, pool = draw(st.integers(1, rows)), draw(st.integers(1, 10))
    window = draw(st.none() | st.integers(batch, 2 * chunk * pool + batch))
    return {
        "rows": rows,
        "chunk": chunk,
        "batch": batch,
        "pool": pool,
        "window": window,
        "seed": draw(st.integers(0, 9)),
    }


def made(size: dict[str, Any], **options: Any) -> Batches:
    return batches_of(numbers(size["rows"]), **{key: value for key, value in size.items() if key != "rows"}, **options)


@few
@given(sizes())
def test_every_row_once_an_epoch(size: dict[str, Any]) -> None:
    rows, epochs = size["rows"], 3
    steps = -(-epochs * rows // size["batch"])
    seen = [row for batch in made(size).iterate(0, steps) for row in batch.rows.tolist()]
    assert len(seen) == steps * size["batch"]
    for epoch in range(epochs):
        assert sorted(seen[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


@few
@given(sizes(), st.data())
def test_resumes_at_any_batch(size: dict[str, Any], data: st.DataObject) -> None:
    steps = 2 * size["rows"] // size["batch"] + 2
    first = data.draw(st.integers(0, steps))
    whole = list(made(size).iterate(0, steps))
    resumed = list(made(size).iterate(first, steps))
    assert len(resumed) == steps - first
    for one, other in zip(resumed, whole[first:], strict=True):
        same(one, other)


def same(one: Batch, other: Batch) -> None:
    assert one.rows.tolist() == other.rows.tolist()
    assert one.sites.keys() == other.sites.keys()
    for site in one.sites:
        assert torch.equal(one.sites[site], other.sites[site])


@few
@given(sizes(), st.integers(2, 4))
def test_processes_share_the_batch_of_one(size: dict[str, Any], world: int) -> None:
    size = {**size, "batch": max(1, size["batch"] // world) * world}
    if size["batch"] > size["rows"]:
        return
    alone = list(made(size).iterate(0, 5))
    shares = [list(made(size, rank=rank, world=world).iterate(0, 5)) for rank in range(world)]
    for step, batch in enumerate(alone):
        assert {len(share[step].rows) for share in shares} == {size["batch"] // world}
        for rank, share in enumerate(shares):
            assert share[step].rows.tolist() == batch.rows[rank::world].tolist()
            assert torch.equal(share[step].sites["x"], batch.sites["x"][rank::world])


@few
@given(sizes())
def test_values_are_those_of_their_rows(size: dict[str, Any]) -> None:
    for batch in made(size).iterate(0, 2 * size["rows"] // size["batch"] + 1):
        assert batch.sites["x"][:, 0].tolist() == batch.rows.tolist()


def test_values_are_the_stores(tmp_path: Path) -> None:
    store = synthetic_store(tmp_path, Synthetic(rows=1_000, dtype="bfloat16"))
    whole = {site: store.read(site, 0, store.rows) for site in store.widths}
    batches = Batches(store, ["y", "x", "y"], batch=96, seed=5, pool_bytes=32 * 1024)
    assert batches.pools > 1
    for batch in batches.iterate(0, 25):
        assert list(batch.sites) == ["y", "x"]
        for site, found in batch.sites.items():
            assert found.dtype == torch.bfloat16
            assert torch.equal(found, whole[site][torch.from_numpy(batch.rows)])


@few
@given(sizes(), st.data())
def test_held_out_rows_never_appear(size: dict[str, Any], data: st.DataObject) -> None:
    kept = data.draw(st.integers(size["batch"], size["rows"]))
    batches = made(size, rows=kept)
    seen = [row for batch in batches.iterate(0, -(-kept // size["batch"])) for row in batch.rows.tolist()]
    assert sorted(seen[:kept]) == list(range(kept))
    assert max(seen) < kept


def order(batches: Batches) -> np.ndarray:
    """Row numbers of the first epoch, as they come."""
    steps = -(-batches.rows // batches.batch)
    return np.concatenate([batch.rows for batch in batches.iterate(0, steps)])[: batches.rows]


@few
@given(sizes(), st.integers(1, 30))
def test_the_order_does_not_depend_on_memory(size: dict[str, Any], more: int) -> None:
    tight = made({**size, "window": size["batch"]})
    assert order(tight).tolist() == order(made({**size, "window": size["batch"] + more})).tolist()
    assert order(tight).tolist() == order(made({**size, "window": None})).tolist()


def test_the_order_does_not_depend_on_the_sites_read(tmp_path: Path) -> None:
    store = synthetic_store(tmp_path, Synthetic(rows=1_000))
    orders = [
        order(Batches(store, sites, batch=50, seed=1, pool_bytes=32 * 1024)).tolist()
        for sites in (["x"], ["y"], ["x", "y"])
    ]
    assert orders[0] == orders[1] == orders[2]


def test_epochs_and_seeds_differ() -> None:
    orders = [order(batches_of(numbers(512), 16, 64, pool=8, seed=seed)).tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    second_epoch = [r for batch in batches_of(numbers(512), 16, 64).iterate(8, 16) for r in batch.rows.tolist()]
    assert second_epoch != order(batches_of(numbers(512), 16, 64)).tolist()


def test_neighbouring_rows_end_up_far_apart() -> None:
    """Two neighbours in a pool of P rows are P/3 apart on average, as in a shuffle of those P rows."""
    rows, chunk, pool_chunks, batch = 2**15, 128, 32, 256
    found = order(batches_of(numbers(rows), chunk, batch, pool_chunks))
    place = np.empty(rows, dtype=np.int64)
    place[found] = np.arange(rows)
    distance = np.abs(np.diff(place))
    pool = chunk * pool_chunks
    assert np.median(distance) > 0.25 * pool  # of a shuffled pool: 0.29
    together = np.mean(place[1:] // batch == place[:-1] // batch)
    assert together < 1.2 * batch / pool
    # and the chunks of a pool come from all over the store
    assert np.ptp(found[:pool]) > 0.9 * rows


def documents(rows: int, rng: np.random.Generator) -> np.ndarray:
    """Of 37 rows, which resemble each other: half of the variance is the document's."""
    document = np.arange(rows) // 37
    return (rng.standard_normal((document[-1] + 1, 16))[document] + rng.standard_normal((rows, 16))) / 2**0.5


def sorted_by_label(rows: int, rng: np.random.Generator) -> np.ndarray:
    """Half of the variance is that of eight labels, one after another in the store."""
    return (rng.standard_normal((8, 16))[np.arange(rows) * 8 // rows] + rng.standard_normal((rows, 16))) / 2**0.5


@pytest.mark.parametrize("values", [documents, sorted_by_label])
def test_batch_means_scatter_as_in_a_global_shuffle(
    values: Callable[[int, np.random.Generator], np.ndarray],
) -> None:
    """Their variance is within a tenth of that of n rows drawn from all N without replacement, S²/n · (1 - n/N)."""
    rows, chunk, batch, epochs = 2**15, 128, 64, 4
    x_RD = values(rows, np.random.default_rng(0))
    batches = batches_of(torch.from_numpy(x_RD).float(), chunk, batch, pool=64)
    assert batches.pools == 4

    def scatter(order_R: np.ndarray) -> float:
        means_D = x_RD[order_R].reshape(-1, batch, x_RD.shape[1]).mean(1)
        return float(((means_D - x_RD.mean(0)) ** 2).mean(0).sum())

    drawn = float(x_RD.var(0, ddof=1).sum()) / batch * (1 - batch / rows)
    ours = np.concatenate([found.rows for found in batches.iterate(0, epochs * rows // batch)])
    assert scatter(np.random.default_rng(1).permutation(rows)) == pytest.approx(drawn, rel=0.1)
    assert scatter(np.arange(rows)) > 10 * drawn, "unshuffled batches do differ"
    assert scatter(ours) == pytest.approx(drawn, rel=0.1)


MEASURED = """
import psutil, sys
from harvest.store import Store
from train.batches import Batches
from train.pools import MIB
store, memory = Store(sys.argv[1]), int(sys.argv[2])
def resident(): return psutil.Process().memory_info().rss / MIB
for _ in Batches(store, ["x"], 64, 0, rows=64 * 20).iterate(0, 10): pass
before = resident()
batches = Batches(store, ["x"], 512, 0, memory=memory * MIB).iterate(0, store.rows // 512)
print(max(resident() - before for batch in batches))
"""


def test_memory_stays_in_its_bound(tmp_path: Path) -> None:
    """What the process really takes, over an epoch of a store that does not fit."""
    store = synthetic_store(tmp_path, Synthetic(rows=48 * 1024, widths={"x": 512}, features=4))  # 96 MiB
    for memory in (32, 64):
        arguments = [sys.executable, "-c", MEASURED, str(store.path), str(memory)]
        grown = float(subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
        assert memory / 2 < grown <= memory + 8, "large pages are rounded up, and threads take some"


def test_too_little_memory_is_refused() -> None:
    batches_of(numbers(1000), 50, 100, memory=100 * 1024)
    with pytest.raises(
        UserError, match=r"--memory: 0.03\d+ MiB is too little for batches of 100 rows of 4 bytes; give at least 1"
    ):
        batches_of(numbers(1000), 50, 100, memory=32 * 1024)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_batches_on_a_gpu_are_those_on_the_host() -> None:
    values = torch.randn(10_000, 64, generator=torch.Generator().manual_seed(0))
    batches = batches_of(values, 100, 512, pool=20, device=torch.device("cuda"))
    for batch in batches.iterate(0, 100):
        busy = torch.randn(2048, 2048, device="cuda") @ torch.randn(2048, 2048, device="cuda")
        found = batch.sites["x"] + 0 * busy[0, 0]
        assert torch.equal(found.cpu(), values[torch.from_numpy(batch.rows)])


class Counting(InMemory):
    def __init__(self, values: torch.Tensor, chunk: int) -> None:
        super().__init__(values, chunk)
        self.reads: list[int] = []

    def read(self, site: str, start: int, stop: int) -> torch.Tensor:
        self.reads.append(stop - start)
        return super().read(site, start, stop)


def test_a_store_that_fits_is_read_once() -> None:
    store = Counting(numbers(300), 16)
    for _ in Batches(cast(Store, store), ["x"], 50, seed=0).iterate(0, 30):
        pass
    assert sum(store.reads) == 300


def test_nothing_is_read_past_the_last_batch() -> None:
    store = Counting(numbers(300), 10)
    pool_bytes = 10 * 10 * (4 + INDEX_BYTES)
    for _ in Batches(cast(Store, store), ["x"], 50, seed=0, pool_bytes=pool_bytes).iterate(0, 2):
        pass
    assert sum(store.reads) == 100


def test_what_goes_wrong_in_reading_comes_to_the_loop() -> None:
    class Broken(InMemory):
        def read(self, site: str, start: int, stop: int) -> torch.Tensor:
            if start >= 200:
                raise OSError("the disk is gone")
            return super().read(site, start, stop)

    batches = Batches(cast(Store, Broken(numbers(300), 10)), ["x"], 50, seed=0, pool_bytes=3_600)
    with pytest.raises(OSError, match="the disk is gone"):
        list(batches.iterate(0, 6))


def test_refuses_a_batch_it_cannot_make() -> None:
    with pytest.raises(UserError, match="batch: 11 is more than the 10 rows"):
        batches_of(numbers(10), 4, 11)
    with pytest.raises(UserError, match="batch: 9 rows cannot be shared equally by 2 processes"):
        batches_of(numbers(10), 4, 9, world=2)
