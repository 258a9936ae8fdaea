"""What of a store is in memory while it is trained on. Imports nothing heavy: the Snakefile plans with it."""

from dataclasses import dataclass

POOL_BYTES = 3 * 2**28
"""What is shuffled together, counted over all sites of the store: two pools and some batches fit in 2 GiB."""
INDEX_BYTES = 48
"""What a row's numbers and places take beside its values, while they are worked out."""
READERS = 4
"""A disk that is asked for several chunks at once gives them 1.7 times as fast; the page cache does not care."""
CHUNKS_HELD = 4
"""For each reader: its own, what Zarr holds of it, and what the allocator keeps of both."""
BATCHES_HELD = 3
"""One with the caller, the one before it, and one being made."""
MIB = 2**20
MEMORY = 2048 * MIB


@dataclass(frozen=True)
class Pools:
    """How the rows of a store are divided into pools, and how much of one a process holds.

    `store_row` and `row` are the bytes of a row at all sites of the store, and at those that are read; `share` is how
    many rows of a batch a process has.
    """

    rows: int
    chunk: int
    store_row: int
    row: int
    share: int
    pool_bytes: int = POOL_BYTES
    readers: int = READERS

    @property
    def chunks(self) -> int:
        return -(-self.rows // self.chunk)

    @property
    def count(self) -> int:
        return -(-self.chunks // max(1, self.pool_bytes // ((self.store_row + INDEX_BYTES) * self.chunk)))

    @property
    def pool_rows(self) -> int:
        return min(self.rows, -(-self.chunks // self.count) * self.chunk)

    @property
    def beside(self) -> int:
        """Bytes that are held beside the windows."""
        values = (BATCHES_HELD * self.share + self.readers * CHUNKS_HELD * self.chunk) * self.row
        return values + INDEX_BYTES * self.pool_rows

    @property
    def least(self) -> int:
        """The least memory that is enough: windows of one batch."""
        return self.beside + 2 * self.share * (self.row + INDEX_BYTES)

    def window(self, memory: int) -> int:
        """How many rows of this process's share may be held at once, while as many are read."""
        return (memory - self.beside) // 2 // (self.row + INDEX_BYTES)

    def bytes(self, memory: int = MEMORY) -> int:
        """What is held in all, of a store that may have less to hold than `memory`."""
        return self.beside + 2 * min(self.window(memory), self.pool_rows) * (self.row + INDEX_BYTES)
