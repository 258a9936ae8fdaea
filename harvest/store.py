"""The store: a Zarr v3 group with one `(rows, width)` array per site and the rows' metadata.

    activations.zarr/
      sites/<site>                 (rows, width); bfloat16 as a uint16 view with the attribute torch_dtype
      rows/document, rows/token    (rows,) int32, and whatever else the source knows of its rows
      statistics/<what>/<site>     one entry a shard; merged when read
      statistics/rows              (shards,) rows in each finished shard, written last: 0 means not done

A shard is the unit of work and of writing, a chunk the unit of reading. Everything is preallocated and only whole
shards are written, so a store that was killed at any moment holds finished shards and nothing else that counts.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import zarr

from harvest.errors import UserError
from harvest.source import Source

SCHEMA = 1
CHUNK_BYTES = 2**20
SHARD_BYTES = 2**27
SHARDS_AT_LEAST = 16
_MARKER = "statistics/rows"


@dataclass(frozen=True)
class Layout:
    """Rows in a chunk and in a shard; the same for every site, so that a shard is one unit of work."""

    chunk_rows: int
    shard_rows: int

    @staticmethod
    def for_source(source: Source) -> "Layout":
        """Chunks near 1 MiB and shards near 128 MiB of the widest site; smaller stores still get 16 shards."""
        row_bytes = max(source.widths.values()) * torch_dtype(source.dtype).itemsize
        chunk = max(1, 2 ** ((CHUNK_BYTES // row_bytes).bit_length() - 1)) if row_bytes <= CHUNK_BYTES else 1
        wanted = min(SHARD_BYTES // row_bytes, -(-source.rows // SHARDS_AT_LEAST))
        chunk = min(chunk, max(1, wanted))
        return Layout(chunk, max(1, wanted // chunk) * chunk)


@dataclass(frozen=True)
class Statistics:
    """Per-dimension mean and variance (population) of a site, and the mean Euclidean norm of its rows."""

    rows: int
    mean: np.ndarray
    variance: np.ndarray
    mean_norm: float


def torch_dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's bytes as an array Zarr can hold; bfloat16, which it can't, as uint16."""
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def to_torch(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(array).view(dtype)


def fingerprint_of(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class Store:
    """A store opened for reading. `path` may hold a harvest that is still running; `finished` says which shards are."""

    def __init__(self, path: str | pathlib.Path) -> None:
        self.path = pathlib.Path(path)
        try:
            self.group = zarr.open_group(self.path, mode="r")
            attributes = self.group.attrs.asdict()
        except (OSError, ValueError, KeyError):
            raise UserError(f"store {path}: is no Zarr v3 group; run the harvest first") from None
        if attributes.get("schema") != SCHEMA:
            raise UserError(f"store {path}: has schema {attributes.get('schema')}, this version reads {SCHEMA}")
        self.fingerprint: str = attributes["fingerprint"]
        self.facts: dict[str, Any] = attributes["source"]
        self.rows: int = attributes["rows"]
        self.widths: dict[str, int] = attributes["widths"]
        self.dtype = torch_dtype(attributes["dtype"])
        self.layout = Layout(attributes["chunk_rows"], attributes["shard_rows"])
        self.aliases: dict[str, str] = attributes["aliases"]

    def site(self, name: str) -> str:
        """The stored name of a site, which may be written as in the config (`layers.40%.resid_post`)."""
        name = self.aliases.get(name, name)
        if name not in self.widths:
            raise UserError(f"{name}: no such site in {self.path}; it has {', '.join(self.widths)}")
        return name

    def read(self, site: str, start: int, stop: int) -> torch.Tensor:
        """Activations of rows `start` to `stop`: `(stop - start, width)` in the store's dtype."""
        return to_torch(np.asarray(self.array(f"sites/{site}")[start:stop]), self.dtype)

    def array(self, path: str) -> zarr.Array[Any]:
        array = self.group[path]
        assert isinstance(array, zarr.Array)
        return array

    def has(self, path: str) -> bool:
        return path in self.group

    @property
    def labels(self) -> dict[str, list[str]]:
        """Label set -> its labels' names; `rows/labels/<set>` holds indices into them, -1 for none."""
        if not self.has("rows/labels"):
            return {}
        group = self.group["rows/labels"]
        assert isinstance(group, zarr.Group)
        return {name: list(array.attrs.asdict()["names"]) for name, array in sorted(group.arrays())}

    @property
    def finished(self) -> np.ndarray:
        """`(shards,)` bool."""
        return np.asarray(self.array(_MARKER)[:]) > 0

    def statistics(self, site: str) -> Statistics:
        """The statistics of all finished shards, merged (Chan et al. 1979: pairwise means and squared deviations)."""
        done = self.finished
        counts = np.asarray(self.array(_MARKER)[:])[done].astype(np.float64)
        means = np.asarray(self.array(f"statistics/mean/{site}")[:])[done]
        squares = np.asarray(self.array(f"statistics/squares/{site}")[:])[done]
        norms = np.asarray(self.array(f"statistics/norm/{site}")[:])[done]
        rows = counts.sum()
        mean = counts @ means / rows
        variance = (squares.sum(0) + counts @ (means - mean) ** 2) / rows
        return Statistics(int(rows), mean, variance, float(counts @ norms / rows))


class StoreWriter:
    """Creates a store, or continues one with the same fingerprint, and writes whole shards."""

    def __init__(self, path: pathlib.Path, source: Source, aliases: Mapping[str, str]) -> None:
        self.path, self.source = path, source
        self.layout = Layout.for_source(source)
        self.shards = -(-source.rows // self.layout.shard_rows)
        self.facts = {**source.facts, "rows": source.rows, "shard_rows": self.layout.shard_rows, "schema": SCHEMA}
        self.fingerprint = fingerprint_of(self.facts)
        self.aliases = {name: site for name, site in aliases.items() if name != site}
        self.group: zarr.Group

    def check(self) -> None:
        """Refuse, before anything is written, a folder that holds another store or something else."""
        if not self.path.exists() or not any(self.path.iterdir()):
            return
        try:
            facts = zarr.open_group(self.path, mode="r").attrs.asdict()["source"]
        except (OSError, ValueError, KeyError):
            raise UserError(f"store {self.path}: the folder exists and is no store; give another name") from None
        assert isinstance(facts, dict)
        if facts != self.facts:
            differences = "; ".join(_differences(facts, self.facts))
            raise UserError(
                f"store {self.path} was harvested from something else: {differences}. "
                "Give this harvest another name, or delete the store first"
            )

    @property
    def bytes(self) -> int:
        """Bytes on disk when the store is whole (row metadata counted uncompressed)."""
        itemsize = torch_dtype(self.source.dtype).itemsize
        per_row = sum(self.source.widths.values()) * itemsize
        per_row += sum(np.dtype(c.dtype).itemsize * (c.width or 1) for c in self.source.columns.values())
        return per_row * self.source.rows + sum(table.nbytes for table in self.source.tables.values())

    def create(self) -> None:
        """Create whatever is not there yet. Repeatable: a kill in the middle is mended by the next call."""
        source, rows = self.source, self.source.rows
        root = zarr.open_group(self.path, mode="a")
        if "fingerprint" not in root.attrs:
            root.update_attributes(
                {
                    "schema": SCHEMA,
                    "fingerprint": self.fingerprint,
                    "source": self.facts,
                    "rows": rows,
                    "widths": dict(source.widths),
                    "dtype": source.dtype,
                    "chunk_rows": self.layout.chunk_rows,
                    "shard_rows": self.layout.shard_rows,
                    "aliases": self.aliases,
                    "created_with": {name: version(name) for name in ("torch", "zarr", "numpy")},
                }
            )
        self.group = root
        stored = "uint16" if source.dtype == "bfloat16" else source.dtype
        for site, width in source.widths.items():
            # Activations barely compress; raw bytes read at memory speed.
            self._array(f"sites/{site}", stored, (rows, width), {"torch_dtype": source.dtype}, compress=False)
            for what in ("mean", "squares"):
                self._statistic(f"statistics/{what}/{site}", width)
            self._statistic(f"statistics/norm/{site}")
        for path, column in source.columns.items():
            shape = (rows,) if column.width is None else (rows, column.width)
            self._array(path, column.dtype, shape, column.attributes)
        self._statistic(_MARKER, dtype="int64")
        for path, table in source.tables.items():
            if path not in root:
                root.create_array(
                    path, shape=table.shape, dtype=table.dtype, chunks=tuple(max(1, n) for n in table.shape)
                )
            array = root[path]
            assert isinstance(array, zarr.Array)
            array[...] = table

    def _array(
        self, path: str, dtype: str, shape: tuple[int, ...], attributes: Mapping[str, Any], compress: bool = True
    ) -> None:
        if path in self.group:
            return
        self.group.create_array(
            path,
            shape=shape,
            dtype=dtype,
            chunks=(self.layout.chunk_rows, *shape[1:]),
            shards=(self.layout.shard_rows, *shape[1:]),
            compressors="auto" if compress else None,
            attributes=dict(attributes),
            fill_value=0,
            config={"write_empty_chunks": True},
        )

    def _statistic(self, path: str, width: int | None = None, dtype: str = "float64") -> None:
        if path not in self.group:
            shape = (self.shards,) if width is None else (self.shards, width)
            chunks = (1, *shape[1:])
            self.group.create_array(path, shape=shape, dtype=dtype, chunks=chunks, compressors=None, fill_value=0)

    def range(self, shard: int) -> tuple[int, int]:
        """The rows of a shard: start and stop."""
        start = shard * self.layout.shard_rows
        return start, min(start + self.layout.shard_rows, self.source.rows)

    def missing(self, first: int, last: int) -> list[int]:
        """Unfinished shards in `[first, last)`."""
        marker = self.group[_MARKER]
        assert isinstance(marker, zarr.Array)
        done = np.asarray(marker[first:last])
        return [first + int(i) for i in np.flatnonzero(done == 0)]

    def write(self, shard: int, sites: Mapping[str, torch.Tensor], columns: Mapping[str, np.ndarray]) -> None:
        """Write one whole shard; the marker that makes it count comes last."""
        start, stop = self.range(shard)
        for site, rows in sites.items():
            assert rows.shape == (stop - start, self.source.widths[site]), (site, rows.shape)
            self._write(f"sites/{site}", start, stop, to_numpy(rows))
        for path, values in columns.items():
            self._write(path, start, stop, values)
        for site, rows in sites.items():
            mean, squares, norm = _shard_statistics(rows)
            self._write(f"statistics/mean/{site}", shard, shard + 1, mean[None])
            self._write(f"statistics/squares/{site}", shard, shard + 1, squares[None])
            self._write(f"statistics/norm/{site}", shard, shard + 1, norm[None])
        self._write(_MARKER, shard, shard + 1, np.array([stop - start]))

    def _write(self, path: str, start: int, stop: int, values: np.ndarray) -> None:
        array = self.group[path]
        assert isinstance(array, zarr.Array)
        array[start:stop] = values

    def sweep(self, first: int, last: int) -> None:
        """Remove what a killed writer left of shards `[first, last)`: Zarr writes `<key>.<random>.partial`, then renames."""
        for litter in self.path.rglob("*.partial"):
            parts = litter.relative_to(self.path).parts
            shard = parts[parts.index("c") + 1].split(".")[0] if "c" in parts else ""
            if shard.isdigit() and first <= int(shard) < last:
                litter.unlink(missing_ok=True)


def _shard_statistics(rows: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and sum of squared deviations per dimension, and the mean norm, in float64 (a few rows at a time)."""
    blocks = rows.split(4096)
    mean = sum((block.double().sum(0) for block in blocks), torch.zeros((), dtype=torch.float64)) / len(rows)
    squares = sum(((block.double() - mean).square().sum(0) for block in blocks), torch.zeros((), dtype=torch.float64))
    norm = sum((block.double().norm(dim=1).sum() for block in blocks), torch.zeros((), dtype=torch.float64)) / len(rows)
    return mean.numpy(), squares.numpy(), norm.numpy()


def _differences(stored: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`key: it has A, the config says B` for every leaf that differs."""
    found = []
    for key in sorted({*stored, *wanted}):
        ours, theirs = stored.get(key), wanted.get(key)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            found += _differences(ours, theirs, f"{prefix}{key}.")
        elif ours != theirs:
            found.append(f"{prefix}{key}: it has {json.dumps(ours)}, the config says {json.dumps(theirs)}")
    return found
