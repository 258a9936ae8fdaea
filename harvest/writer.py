"""Writing a store: `harvest.store` says how it lies on disk and reads it."""

import contextlib
import hashlib
import json
import pathlib
import re
from collections.abc import Container, Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import zarr
from zarr.errors import ContainsArrayError, ContainsGroupError

from harvest.errors import UserError
from harvest.files import differences_of
from harvest.layout import Layout, sites_bytes
from harvest.location import Location
from harvest.object_store import UrlStore, zarr_store
from harvest.source import Source
from harvest.store import MARKER, SCHEMA


class StoreWriter:
    """Creates a store, or continues one with the same fingerprint, and writes whole shards."""

    def __init__(self, path: Location, source: Source, aliases: Mapping[str, str]) -> None:
        self.path, self.source = path, source
        self.files = zarr_store(path)
        self.layout = Layout.of(source.rows, source.widths, source.dtype)
        self.shards = self.layout.shards(source.rows)
        self.facts = {**source.facts, "rows": source.rows, "shard_rows": self.layout.shard_rows, "schema": SCHEMA}
        self.fingerprint = fingerprint_of(self.facts)
        self.aliases = {name: site for name, site in aliases.items() if name != site}
        self.group: zarr.Group
        self.arrays: dict[str, zarr.Array[Any]] = {}

    def check(self) -> None:
        """Refuse, before anything is written, a folder that holds another store or something else."""
        try:
            if self._has_nothing():
                return
            facts = zarr.open_group(self.files, mode="r", zarr_format=3).attrs.asdict()["source"]
        except (OSError, ValueError, KeyError):
            raise UserError(f"store {self.path}: the folder exists and is no store; give another name") from None
        assert isinstance(facts, dict)
        if facts != self.facts:
            differences = "; ".join(
                f"{key}: it has {json.dumps(there)}, the config says {json.dumps(wanted)}"
                for key, there, wanted in differences_of(facts, self.facts)
            )
            raise UserError(
                f"store {self.path} was harvested from something else: {differences}. "
                "Give this harvest another name, or delete the store first"
            )

    def _has_nothing(self) -> bool:
        if isinstance(self.files, UrlStore):
            return self.files.has_nothing()
        return not self.files.exists() or all(_before_creation(file.name) for file in self.files.iterdir())

    @property
    def bytes(self) -> int:
        """Bytes on disk when the store is whole (row metadata counted uncompressed)."""
        source = self.source
        columns = sum(np.dtype(c.dtype).itemsize * (c.width or 1) for c in source.columns.values())
        tables = sum(table.nbytes for table in source.tables.values())
        return sites_bytes(source.rows, source.widths, source.dtype) + columns * source.rows + tables

    def create(self) -> None:
        """Create whatever is not there yet. Repeatable: a kill in the middle is mended by the next call."""
        source, rows = self.source, self.source.rows
        # The attributes come with the group, in one file: what is a Zarr group here is a store. Where there is no lock,
        # another part may be faster with it and with all that follows; what that creates is the same.
        with contextlib.suppress(ContainsGroupError):
            zarr.open_group(self.files, mode="a", zarr_format=3, attributes=self._attributes())
        self.group = zarr.open_group(self.files, mode="r+", zarr_format=3)
        aliases = self.group.attrs.asdict()["aliases"]
        assert isinstance(aliases, dict)
        if not self.aliases.items() <= aliases.items():
            self.group.update_attributes({"aliases": {**aliases, **self.aliases}})
        stored = "uint16" if source.dtype == "bfloat16" else source.dtype
        for site, width in source.widths.items():
            # Activations barely compress; raw bytes read at memory speed.
            self._rows_array(f"sites/{site}", stored, (rows, width), {"torch_dtype": source.dtype}, compress=False)
            for what in ("mean", "squares"):
                self._statistic(f"statistics/{what}/{site}", width)
            self._statistic(f"statistics/norm/{site}")
        for path, column in source.columns.items():
            shape = (rows,) if column.width is None else (rows, column.width)
            self._rows_array(path, column.dtype, shape, column.attributes)
        self._statistic(MARKER, dtype="int64")
        for path, table in source.tables.items():
            self._array(path, shape=table.shape, dtype=table.dtype, chunks=tuple(max(1, n) for n in table.shape))
            self.arrays[path][...] = table

    def _attributes(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "fingerprint": self.fingerprint,
            "source": self.facts,
            "rows": self.source.rows,
            "widths": dict(self.source.widths),
            "dtype": self.source.dtype,
            "chunk_rows": self.layout.chunk_rows,
            "shard_rows": self.layout.shard_rows,
            "aliases": self.aliases,
            "created_with": {name: version(name) for name in ("torch", "zarr", "numpy")},
        }

    def _array(self, path: str, **how: Any) -> None:
        # Zarr writes an array's metadata and its parents' at the same time; a kill could leave it an orphan.
        for parent in [*pathlib.PurePosixPath(path).parents][-2::-1]:
            with contextlib.suppress(ContainsGroupError):
                self.group.require_group(str(parent))
        # Chunks of nothing but zeros are written too, by whoever continues a store as by whoever created it.
        with zarr.config.set({"array.write_empty_chunks": True}):
            if path not in self.group:
                with contextlib.suppress(ContainsArrayError):
                    self.group.create_array(path, **how)
            array = self.group[path]
        assert isinstance(array, zarr.Array)
        self.arrays[path] = array

    def _rows_array(
        self, path: str, dtype: str, shape: tuple[int, ...], attributes: Mapping[str, Any], compress: bool = True
    ) -> None:
        self._array(
            path,
            shape=shape,
            dtype=dtype,
            chunks=(self.layout.chunk_rows, *shape[1:]),
            shards=(self.layout.shard_rows, *shape[1:]),
            compressors="auto" if compress else None,
            attributes=dict(attributes),
            fill_value=0,
        )

    def _statistic(self, path: str, width: int | None = None, dtype: str = "float64") -> None:
        shape = (self.shards,) if width is None else (self.shards, width)
        self._array(path, shape=shape, dtype=dtype, chunks=(1, *shape[1:]), compressors=None, fill_value=0)

    def range(self, shard: int) -> tuple[int, int]:
        """The rows of a shard: start and stop."""
        start = shard * self.layout.shard_rows
        return start, min(start + self.layout.shard_rows, self.source.rows)

    def missing(self, first: int, last: int) -> list[int]:
        """Unfinished shards in `[first, last)`."""
        done = np.asarray(self.arrays[MARKER][first:last])
        return [first + int(i) for i in np.flatnonzero(done == 0)]

    def write(self, shard: int, sites: Mapping[str, torch.Tensor], columns: Mapping[str, np.ndarray]) -> None:
        """Write one whole shard; the marker that makes it count comes last. Raises `UserError` for NaN and infinity."""
        start, stop = self.range(shard)
        statistics = {site: _shard_statistics(rows) for site, rows in sites.items()}
        for site, rows in sites.items():
            assert rows.shape == (stop - start, self.source.widths[site]), (site, rows.shape)
            if not np.isfinite(statistics[site][1]).all():
                row = start + int((~rows.isfinite()).any(1).nonzero()[0])
                raise UserError(
                    f"{site}: row {row} is not finite in {self.source.dtype}; take a dtype with a wider range"
                )
            self.arrays[f"sites/{site}"][start:stop] = to_numpy(rows)
        for path, values in columns.items():
            self.arrays[path][start:stop] = values
        for site, (mean, squares, norm) in statistics.items():
            self.arrays[f"statistics/mean/{site}"][shard : shard + 1] = mean[None]
            self.arrays[f"statistics/squares/{site}"][shard : shard + 1] = squares[None]
            self.arrays[f"statistics/norm/{site}"][shard : shard + 1] = norm[None]
        self.arrays[MARKER][shard : shard + 1] = np.array([stop - start])

    def sweep(self, shards: Container[int | None]) -> None:
        """Remove what a killed writer left of these shards, or of what belongs to no shard (None): metadata, tables.

        Zarr writes `<key>.<random>.partial`, then renames. An object has no such beginnings.
        """
        if isinstance(self.files, UrlStore):
            return
        for litter in self.files.rglob("*.partial"):
            found = re.fullmatch(r"(.+)/c/(\d+)(/0)?\.\w+\.partial", litter.relative_to(self.files).as_posix())
            shard = int(found[2]) if found and found[1] not in self.source.tables else None
            if shard in shards:
                litter.unlink(missing_ok=True)


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's bytes as an array Zarr can hold; bfloat16, which it can't, as uint16."""
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def fingerprint_of(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _before_creation(name: str) -> bool:
    """Whether this file can be in the folder of a store that was killed before it was created."""
    return name == ".lock" or name.endswith(".partial")


def _shard_statistics(rows_ND: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and sum of squared deviations per dimension, and the mean norm, in float64.

    Blocks of rows, merged as shards are (Chan et al. 1979). A block fits into the cache, and is too small for torch to
    split over threads, which the model's forward pass needs meanwhile: a fifth of the time of passes over all rows.
    """
    count, norms = 0, torch.zeros((), dtype=torch.float64)
    mean_D = torch.zeros(rows_ND.shape[1], dtype=torch.float64)
    squares_D = torch.zeros_like(mean_D)
    for rows_BD in torch.split(rows_ND, max(1, 2**15 // rows_ND.shape[1])):
        block_BD = rows_BD.double()
        norms += torch.linalg.vector_norm(block_BD, dim=1).sum()
        block_mean_D = block_BD.mean(0)
        distance_D = block_mean_D - mean_D
        share = len(block_BD) / (count + len(block_BD))
        squares_D += (block_BD - block_mean_D).square_().sum(0) + distance_D.square() * (count * share)
        mean_D += distance_D * share
        count += len(block_BD)
    return mean_D.numpy(), squares_D.numpy(), (norms / count).numpy()
