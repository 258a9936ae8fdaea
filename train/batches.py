"""Shuffled batches from a store: every row exactly once an epoch, in an order that is a function of (seed, epoch)."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from harvest.errors import UserError
from harvest.store import REQUESTS, Store
from train.pools import CHUNKS_HELD, MEMORY, MIB, POOL_BYTES, READERS, Pools

Item = TypeVar("Item")


@dataclass(frozen=True)
class Batch:
    """Some rows of the store: `sites[name]` is `(B, width)` in the store's dtype, `rows` their numbers."""

    sites: dict[str, Tensor]
    rows: np.ndarray


class Batches:
    """Shuffle in two steps: the chunks of an epoch, then the rows of as many chunks as make a pool.

    A store of one pool is shuffled row by row as a whole. A pool's size follows from the store alone, so the order
    depends neither on the sites that are read, nor on the number of processes, nor on `memory`: a pool that does not
    fit is gone through in several windows, each of which reads the pool's chunks anew and keeps its own rows.

    Nothing but the step number is needed to continue: batch `t` is rows `t·batch` to `(t+1)·batch` of the endless
    sequence of epochs. Each of `world` processes takes every `world`-th row of the same batch. Two windows, some
    chunks and three batches are in memory: at most `memory` bytes, on the host, in each process.
    """

    def __init__(
        self,
        store: Store,
        sites: list[str],
        batch: int,
        seed: int,
        rows: int | None = None,
        memory: int = MEMORY,
        device: torch.device | None = None,
        rank: int = 0,
        world: int = 1,
        pool_bytes: int = POOL_BYTES,
    ) -> None:
        self.store, self.batch, self.seed, self.rank, self.world = store, batch, seed, rank, world
        self.device = device or torch.device("cpu")
        self.sites = list(dict.fromkeys(sites))
        self.rows = store.rows if rows is None else rows
        if batch > self.rows:
            raise UserError(f"batch: {batch} is more than the {self.rows} rows to train on; take at most that many")
        if batch % world:
            raise UserError(f"batch: {batch} rows cannot be shared equally by {world} processes; take a multiple")
        self.chunk = store.layout.chunk_rows
        store_row, row = (
            sum(store.widths[site] for site in some) * store.dtype.itemsize for some in (store.widths, self.sites)
        )
        held = CHUNKS_HELD * self.chunk * row
        self.readers = max(READERS, min(REQUESTS, memory // 4 // held)) if store.remote else READERS
        pools = Pools(self.rows, self.chunk, store_row, row, batch // world, pool_bytes, self.readers)
        if memory < pools.least:
            raise UserError(
                f"--memory: {memory / MIB:g} MiB is too little for batches of {batch} rows of {row} bytes; "
                f"give at least {-(-pools.least // MIB)}"
            )
        self.chunks, self.pools, self.pool_rows = pools.chunks, pools.count, pools.pool_rows
        self.window = pools.window(memory)

    def iterate(self, first: int, steps: int) -> Iterator[Batch]:
        """Batches `first` to `steps` on the device, the next one being made and moved while one is used."""
        if self.device.type != "cuda":
            yield from _ahead(self._share(first, steps))
            return
        # Copies have a stream of their own, so that they pass by the step that is being computed.
        copies = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        for batch, copied in _ahead(self._moved(self._share(first, steps), copies)):
            now = torch.cuda.current_stream(self.device)
            now.wait_event(copied)
            for values in batch.sites.values():
                values.record_stream(now)  # its memory is not used again before the step is done with it
            yield batch

    def _moved(self, batches: Iterator[Batch], copies: torch.cuda.Stream) -> Iterator[tuple[Batch, torch.cuda.Event]]:
        """On their way from pinned memory, which torch uses again only once a copy from it is done."""
        for batch in batches:
            with torch.cuda.stream(copies):
                sites = {site: values.to(self.device, non_blocking=True) for site, values in batch.sites.items()}
            yield Batch(sites, batch.rows), copies.record_event()

    def _share(self, first: int, steps: int) -> Iterator[Batch]:
        """This process's share of each batch, the next window being read while one is used."""
        share = self.batch // self.world
        windows = _ahead(self._windows(first * self.batch, steps * self.batch))
        order, cursor = np.empty(0, np.int64), 0
        for _ in range(first, steps):
            sites = {site: self._empty(site, share, self.device.type == "cuda") for site in self.sites}
            numbers = np.empty(share, np.int64)
            filled = 0
            while filled < share:
                if cursor == len(order):
                    (rows, order, held), cursor = next(windows), 0
                taken = order[cursor : cursor + share - filled]
                stop = filled + len(taken)
                for site, values in held.items():
                    np.take(_bits(values), taken, 0, out=_bits(sites[site][filled:stop]), mode="clip")
                numbers[filled:stop] = rows[taken]
                cursor, filled = cursor + len(taken), stop
            yield Batch(sites, numbers)

    def _windows(self, first: int, stop: int) -> Iterator[tuple[np.ndarray, np.ndarray, dict[str, Tensor]]]:
        """(rows, order, values) from place `first` of the endless sequence until `stop`.

        Two buffers take turns: a window's values are there until the next but one is asked for.
        """
        size = min(self.window, self.pool_rows // self.world + 1)
        buffers = [{site: self._empty(site, size) for site in self.sites} for _ in range(2)]
        held = np.empty(0, np.int64)
        with ThreadPoolExecutor(self.readers) as readers:
            for rows, order in self._plan(first, stop):
                if not np.array_equal(rows, held):  # else the whole store is one window: shuffle it, read it once
                    buffers.reverse()
                    held = rows
                    for site, buffer in buffers[0].items():
                        self._read(site, rows, buffer, readers)
                yield rows, order, buffers[0]

    def _empty(self, site: str, rows: int, pinned: bool = False) -> Tensor:
        """NumPy asks the system for large pages, which makes the first use of a window several times faster."""
        width, dtype = self.store.widths[site], self.store.dtype
        if pinned:
            return torch.empty(rows, width, dtype=dtype, pin_memory=True)
        return torch.from_numpy(np.empty((rows, width * dtype.itemsize), np.uint8)).view(dtype)

    def _plan(self, first: int, stop: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(rows, order) of each window in turn, from place `first` of the endless sequence until `stop`."""
        for epoch in itertools.count(first // self.rows):
            begun = epoch * self.rows
            for pool, drawn in enumerate(self._drawn(epoch)):
                if begun >= stop:
                    return
                rows = (drawn[:, None] * self.chunk + np.arange(self.chunk)).reshape(-1)
                rows = rows[rows < self.rows]
                if first < begun + len(rows):
                    order = np.random.default_rng([self.seed, epoch, pool]).permutation(len(rows))
                    mine = order[(self.rank - begun) % self.world :: self.world]
                    skipped = -(-max(0, first - begun) // self.world)
                    for at in range(skipped, len(mine), self.window):
                        yield _compact(rows, mine[at : at + self.window])
                begun += len(rows)

    def _drawn(self, epoch: int) -> list[np.ndarray]:
        """The chunks of each pool, in ascending order: of every few neighbours in the store, one goes to each pool.

        A store may be sorted, by language say. Every pool still has of everything what the store has of it, which
        chunks drawn from the store as a whole would not.
        """
        strata = -(-self.chunks // self.pools)
        neighbours = np.arange(strata * self.pools).reshape(strata, self.pools)
        drawn = np.random.default_rng([self.seed, epoch]).permuted(neighbours, axis=1)
        return [chunks[chunks < self.chunks] for chunks in drawn.T]

    def _read(self, site: str, rows: np.ndarray, values: Tensor, readers: ThreadPoolExecutor) -> None:
        """Fill the beginning of `values` with these rows, which ascend. Chunk by chunk, each read once."""
        edges = np.flatnonzero(np.diff(rows // self.chunk, prepend=-1, append=-1))

        def fill(begin: int, end: int) -> None:
            start, stop = int(rows[begin]), int(rows[end - 1]) + 1
            read, filled = _bits(self.store.read(site, start, stop)), _bits(values[begin:end])
            if stop - start == end - begin:
                np.copyto(filled, read)
            else:
                np.take(read, rows[begin:end] - start, 0, out=filled, mode="clip")

        list(readers.map(fill, edges[:-1], edges[1:]))


def _bits(values: Tensor) -> np.ndarray:
    """For NumPy, which knows no bfloat16; it copies by one thread, where torch's would compete with the step's."""
    return values.view(torch.uint8).numpy()


def _ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same, the next one being made by a thread while one is used."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def _compact(rows: np.ndarray, taken: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows at the places `taken`, in ascending order, and the places there that give them as taken."""
    held = np.zeros(len(rows), bool)
    held[taken] = True
    return rows[held], (np.cumsum(held) - 1)[taken]
