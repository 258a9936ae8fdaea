"""Shuffled batches from a store: every row exactly once an epoch, in an order that is a function of (seed, epoch)."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from harvest.errors import UserError
from harvest.store import Store


@dataclass(frozen=True)
class Batch:
    """Some rows of the store: `sites[name]` is `(B, width)` in the store's dtype, `rows` their numbers."""

    sites: dict[str, Tensor]
    rows: np.ndarray


@dataclass(frozen=True)
class _Pool:
    """Chunks drawn together: their rows in shuffled order, which `order` gives as places in `sites`."""

    rows: np.ndarray
    order: np.ndarray
    sites: dict[str, Tensor]

    def rows_at(self, places: np.ndarray) -> Batch:
        taken = torch.from_numpy(places)
        return Batch({site: held[taken] for site, held in self.sites.items()}, self.rows[places])


def _joined(parts: list[Batch]) -> Batch:
    sites = {site: torch.cat([part.sites[site] for part in parts]) for site in parts[0].sites}
    return Batch(sites, np.concatenate([part.rows for part in parts]))


class Batches:
    """Shuffle in two steps: the chunks of an epoch, then the rows of as many chunks as memory allows (a pool).

    A store that fits in one pool is shuffled row by row as a whole. Nothing but the step number is needed to continue:
    batch `t` is rows `t·batch` to `(t+1)·batch` of the endless sequence of epochs. Each of `world` processes takes
    every `world`-th row of the same batch. At most two pools are in memory, `memory` bytes in all.
    """

    def __init__(
        self,
        store: Store,
        sites: list[str],
        batch: int,
        seed: int,
        rows: int | None = None,
        memory: int = 2 * 2**30,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.store, self.batch, self.seed, self.rank, self.world = store, batch, seed, rank, world
        self.sites = list(dict.fromkeys(sites))
        self.rows = store.rows if rows is None else rows
        if batch > self.rows:
            raise UserError(f"batch: {batch} is more than the {self.rows} rows to train on; take at most that many")
        if batch % world:
            raise UserError(f"batch: {batch} rows cannot be shared equally by {world} processes; take a multiple")
        self.chunk = store.layout.chunk_rows
        self.chunks = -(-self.rows // self.chunk)
        row_bytes = sum(store.widths[site] for site in self.sites) * store.dtype.itemsize
        self.pool_chunks = max(1, memory // 2 // (row_bytes * self.chunk))

    def iterate(self, first: int, steps: int) -> Iterator[Batch]:
        """Batches `first` to `steps`, the next pool being read while one is used."""
        with ThreadPoolExecutor(1) as thread:
            plan = self._plan(first * self.batch)
            which, cursor = next(plan)
            held = self._load(which, None)
            ahead = thread.submit(self._load, next(plan)[0], held)
            for _ in range(first, steps):
                parts: list[Batch] = []  # rows are copied out at once: a pool that is used up must go
                wanted = self.batch
                while wanted > 0:
                    if cursor == len(held.order):
                        held, cursor = ahead.result(), 0
                        ahead = thread.submit(self._load, next(plan)[0], held)
                    take = held.order[cursor : cursor + wanted]
                    # This process's share of these rows: every `world`-th row of the whole batch.
                    parts.append(held.rows_at(take[(self.rank - (self.batch - wanted)) % self.world :: self.world]))
                    cursor += len(take)
                    wanted -= len(take)
                yield _joined(parts)

    def _plan(self, position: int) -> Iterator[tuple[tuple[int, int], int]]:
        """(epoch, pool) pairs from the one that holds row `position` of the endless sequence, and what it skips."""
        epoch, skipped = divmod(position, self.rows)
        pool = 0
        while skipped >= (size := len(self._rows_of(self._chunks_of(epoch, pool)))):
            skipped -= size
            pool += 1
        while True:
            yield (epoch, pool), skipped
            skipped, pool = 0, pool + 1
            if pool * self.pool_chunks >= self.chunks:
                epoch, pool = epoch + 1, 0

    def _chunks_of(self, epoch: int, pool: int) -> np.ndarray:
        order = np.random.default_rng([self.seed, epoch]).permutation(self.chunks)
        return np.sort(order[pool * self.pool_chunks : (pool + 1) * self.pool_chunks])

    def _rows_of(self, chunks: np.ndarray) -> np.ndarray:
        rows = (chunks[:, None] * self.chunk + np.arange(self.chunk)).reshape(-1)
        return rows[rows < self.rows]

    def _load(self, which: tuple[int, int], before: _Pool | None) -> _Pool:
        epoch, pool = which
        chunks = self._chunks_of(epoch, pool)
        rows = self._rows_of(chunks)
        order = np.random.default_rng([self.seed, epoch, pool]).permutation(len(rows))
        if before is not None and np.array_equal(rows, before.rows):
            return _Pool(rows, order, before.sites)  # the whole store is one pool: shuffle it anew, read it once
        sites = {}
        for site in self.sites:
            filled, at = torch.empty(len(rows), self.store.widths[site], dtype=self.store.dtype), 0
            for chunk in chunks:
                start, stop = int(chunk) * self.chunk, min((int(chunk) + 1) * self.chunk, self.rows)
                filled[at : at + stop - start] = self.store.read(site, start, stop)
                at += stop - start
            sites[site] = filled
        return _Pool(rows, order, sites)
