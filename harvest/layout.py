"""How a store's arrays are cut, and how much room they take. Imports nothing heavy: the Snakefile plans with it."""

from collections.abc import Mapping
from dataclasses import dataclass

CHUNK_BYTES = 2**20
SHARD_BYTES = 2**27
SHARDS_AT_LEAST = 16
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Layout:
    """Rows in a chunk and in a shard; the same for every site, so that a shard is one unit of work."""

    chunk_rows: int
    shard_rows: int

    @staticmethod
    def of(rows: int, widths: Mapping[str, int], dtype: str) -> "Layout":
        """Chunks near 1 MiB and shards near 128 MiB of the widest site; smaller stores still get 16 shards."""
        row_bytes = max(widths.values()) * ITEM_BYTES[dtype]
        chunk = max(1, 2 ** ((CHUNK_BYTES // row_bytes).bit_length() - 1)) if row_bytes <= CHUNK_BYTES else 1
        wanted = min(SHARD_BYTES // row_bytes, rows // SHARDS_AT_LEAST)
        chunk = min(chunk, max(1, wanted))
        return Layout(chunk, max(1, wanted // chunk) * chunk)

    def shards(self, rows: int) -> int:
        return -(-rows // self.shard_rows)


def sites_bytes(rows: int, widths: Mapping[str, int], dtype: str) -> int:
    """What the files of all sites and of their statistics take: they are not compressed.

    Chunks are whole, the last one too; each shard of a site ends with an index, 16 bytes a chunk and a checksum of 4.
    Statistics are two numbers a dimension and one a site in each shard, and its number of rows.
    """
    layout = Layout.of(rows, widths, dtype)
    shards = layout.shards(rows)
    chunks = -(-rows // layout.chunk_rows) * layout.chunk_rows * sum(widths.values()) * ITEM_BYTES[dtype]
    indices = len(widths) * shards * (16 * (layout.shard_rows // layout.chunk_rows) + 4)
    return chunks + indices + 8 * shards * (1 + sum(2 * width + 1 for width in widths.values()))
