"""Shuffled reading: what is read, in which order, with how much memory."""

import time
import weakref
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harvest.errors import UserError
from harvest.store import Layout, Store
from tests.synthetic import Synthetic, synthetic_store
from train.batches import Batch, Batches

few = settings(derandomize=True, max_examples=60, deadline=None)


class InMemory:
    """The part of a store that batches use, over an array."""

    dtype = torch.float32

    def __init__(self, values: torch.Tensor, chunk: int) -> None:
        self.values, self.rows, self.widths = values, len(values), {"x": values.shape[1]}
        self.layout = Layout(chunk, chunk)

    def read(self, site: str, start: int, stop: int) -> torch.Tensor:
        assert site == "x"
        return self.values[start:stop]


def batches_of(values: torch.Tensor, chunk: int, batch: int, kind: type[Batches] = Batches, **options: Any) -> Batches:
    return kind(cast(Store, InMemory(values, chunk)), ["x"], batch, **{"seed": 0, **options})


def numbers(rows: int) -> torch.Tensor:
    return torch.arange(rows, dtype=torch.float32)[:, None]


@st.composite
def sizes(draw: st.DrawFn) -> dict[str, Any]:
    """Any store, batch and memory bound: from one chunk in memory to all of them."""
    rows, chunk = draw(st.integers(1, 90)), draw(st.integers(1, 20))
    batch, pool = draw(st.integers(1, rows)), draw(st.integers(1, 10))
    return {
        "rows": rows,
        "chunk": chunk,
        "batch": batch,
        "memory": 2 * 4 * chunk * pool,
        "seed": draw(st.integers(0, 99)),
    }


def made(size: dict[str, Any], **options: Any) -> Batches:
    rest = {key: value for key, value in size.items() if key not in ("rows", "chunk", "batch")}
    return batches_of(numbers(size["rows"]), size["chunk"], size["batch"], **rest, **options)


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
    batches = Batches(store, ["y", "x", "y"], batch=96, seed=5, memory=64 * 1024)
    assert batches.pool_chunks < batches.chunks, "several pools"
    for batch in batches.iterate(0, 25):
        assert list(batch.sites) == ["y", "x"]
        for site, found in batch.sites.items():
            assert found.dtype == torch.bfloat16
            assert torch.equal(found, whole[site][torch.from_numpy(batch.rows)])


@few
@given(sizes(), st.data())
def test_held_out_rows_never_appear(size: dict[str, Any], data: st.DataObject) -> None:
    kept = data.draw(st.integers(size["batch"], size["rows"]))
    batches = batches_of(
        numbers(size["rows"]), size["chunk"], size["batch"], seed=size["seed"], memory=size["memory"], rows=kept
    )
    seen = [row for batch in batches.iterate(0, -(-kept // size["batch"])) for row in batch.rows.tolist()]
    assert sorted(seen[:kept]) == list(range(kept))
    assert max(seen) < kept


def order(batches: Batches) -> np.ndarray:
    """Row numbers of the first epoch, as they come."""
    steps = -(-batches.rows // batches.batch)
    return np.concatenate([batch.rows for batch in batches.iterate(0, steps)])[: batches.rows]


def test_epochs_and_seeds_differ() -> None:
    orders = [order(batches_of(numbers(512), 16, 64, seed=seed, memory=2 * 4 * 16 * 8)).tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    second_epoch = [r for batch in batches_of(numbers(512), 16, 64).iterate(8, 16) for r in batch.rows.tolist()]
    assert second_epoch != order(batches_of(numbers(512), 16, 64)).tolist()


def test_neighbouring_rows_end_up_far_apart() -> None:
    """Two neighbours in a pool of P rows are P/3 apart on average, as in a shuffle of those P rows."""
    rows, chunk, pool_chunks, batch = 2**15, 128, 32, 256
    found = order(batches_of(numbers(rows), chunk, batch, memory=2 * 4 * chunk * pool_chunks))
    place = np.empty(rows, dtype=np.int64)
    place[found] = np.arange(rows)
    distance = np.abs(np.diff(place))
    pool = chunk * pool_chunks
    assert np.median(distance) > 0.25 * pool  # of a shuffled pool: 0.29
    together = np.mean(place[1:] // batch == place[:-1] // batch)
    assert together < 1.2 * batch / pool
    # and the order of the chunks themselves is shuffled: what is far apart in the store meets in a pool
    assert np.ptp(found[:pool]) > 0.8 * rows


def test_batch_means_look_like_a_global_shuffle() -> None:
    """Rows of one document resemble each other; the means of batches must scatter no more than if rows were drawn."""
    rng = np.random.default_rng(0)
    rows, chunk, batch, width = 2**15, 128, 64, 16
    document = np.arange(rows) // 37
    values = (rng.standard_normal((document[-1] + 1, width))[document] + rng.standard_normal((rows, width))) / 2**0.5
    memory = 2 * 4 * width * chunk * 64  # pools of a quarter of the store
    batches = batches_of(torch.from_numpy(values).float(), chunk, batch, memory=memory)
    assert batches.pool_chunks * 4 == batches.chunks

    def scatter(of: np.ndarray) -> float:
        return float(of.reshape(-1, batch, width).mean(1).var(0).mean())

    ours, drawn = scatter(values[order(batches)]), scatter(values[rng.permutation(rows)])
    assert scatter(values) > 5 * drawn, "unshuffled batches do differ"
    assert 0.85 < ours / drawn < 1.15


class Watched(Batches):
    """Counts the bytes of all pools that are alive whenever one has been read."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
        self.counts: list[int] = []
        self.loads = 0

    def _load(self, which: Any, before: Any) -> Any:
        pool = super()._load(which, before)
        self.loads += 1
        for values in pool.sites.values():
            self.alive.add(values)
        self.count()
        return pool

    def count(self) -> None:
        self.counts.append(sum(values.nbytes for values in list(self.alive)))


@pytest.mark.parametrize("batch", [64, 100, 700])
def test_memory_stays_in_its_bound(batch: int) -> None:
    """Also while a batch that spans pools is with the caller, and the next pool has been read meanwhile."""
    rows, chunk, memory = 2_000, 10, 16_000
    values = torch.zeros(rows, 8)
    watched = batches_of(values, chunk, batch, Watched, memory=memory)
    assert isinstance(watched, Watched)
    for _ in watched.iterate(0, 3 * rows // batch):
        time.sleep(0.003)  # time for the reading thread
        watched.count()
    assert watched.loads > 15
    assert memory / 2 < max(watched.counts) <= memory


def test_a_store_that_fits_is_read_once() -> None:
    class Counting(InMemory):
        reads = 0

        def read(self, site: str, start: int, stop: int) -> torch.Tensor:
            self.reads += stop - start
            return super().read(site, start, stop)

    store = Counting(numbers(300), 16)
    for _ in Batches(cast(Store, store), ["x"], 50, seed=0).iterate(0, 30):
        pass
    assert store.reads == 300


def test_refuses_a_batch_it_cannot_make() -> None:
    with pytest.raises(UserError, match="batch: 11 is more than the 10 rows"):
        batches_of(numbers(10), 4, 11)
    with pytest.raises(UserError, match="batch: 9 rows cannot be shared equally by 2 processes"):
        batches_of(numbers(10), 4, 9, world=2)
