"""The store: a Zarr v3 group with one `(rows, width)` array per site and the rows' metadata.

    activations.zarr/
      sites/<site>                 (rows, width); bfloat16 as a uint16 view with the attribute torch_dtype
      rows/document, rows/token    (rows,) int32, and whatever else the source knows of its rows
      statistics/<what>/<site>     one entry a shard; merged when read
      statistics/rows              (shards,) rows in each finished shard, written last: 0 means not done

A shard is the unit of work and of writing, a chunk the unit of reading. Everything is preallocated and only whole
shards are written, so a store that was killed at any moment holds finished shards and nothing else that counts.
"""

import pathlib
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import zarr

from harvest.errors import UserError
from harvest.layout import Layout
from harvest.location import Location, absolute, check_location
from harvest.object_store import UrlStore, zarr_store

SCHEMA = 1
MARKER = "statistics/rows"
REQUESTS = 32
"""To an object storage at once: each takes tens of milliseconds, however little it asks for."""


_one_opens = threading.Lock()


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


def to_torch(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(array).view(dtype)


class Store:
    """A store opened for reading. `path` may hold a harvest that is still running; `finished` says which shards are."""

    def __init__(self, path: Location) -> None:
        self.path = check_location(path, "store")
        self.place: Location | Sequence[Location] = absolute(self.path)
        """What `harvest.joined.open_store` opens it from, in any process."""
        self.remote = not isinstance(self.path, pathlib.Path)
        """Whether it is in an object storage."""
        files = zarr_store(self.path)
        try:
            self.group = zarr.open_group(files, mode="r", zarr_format=3)
            attributes: dict[str, Any] = self.group.attrs.asdict()
        except (OSError, ValueError, KeyError):
            if isinstance(files, UrlStore):
                files.has_nothing()  # says so where there is no such bucket
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
        self._opened: dict[str, zarr.Array[Any]] = {}

    def site(self, name: str) -> str:
        """The stored name of a site, which may be written as in the config (`layers.40%.resid_post`)."""
        name = self.aliases.get(name, name)
        if name not in self.widths:
            raise UserError(f"{name}: no such site in {self.path}; it has {', '.join(self.widths)}")
        return name

    def read(self, site: str, start: int, stop: int) -> torch.Tensor:
        """Activations of rows `start` to `stop`: `(stop - start, width)` in the store's dtype."""
        if site not in self._opened:  # opening an array takes as long as reading a chunk of it
            # Twice as fast as Zarr's own, which alone knows fsspec. The setting is that of all threads.
            fast = {} if self.remote else {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}
            with _one_opens, zarr.config.set(fast):
                self._opened[site] = self.array(f"sites/{site}")
        array, chunk = self._opened[site], self.layout.chunk_rows
        edges = [start, *range((start // chunk + 1) * chunk, stop, chunk), stop]
        if not self.remote or len(edges) == 2:
            return to_torch(np.asarray(array[start:stop]), self.dtype)
        with ThreadPoolExecutor(REQUESTS) as readers:  # Zarr asks for the chunks of a shard one after the other
            parts = list(readers.map(lambda begin, end: np.asarray(array[begin:end]), edges[:-1], edges[1:]))
        return to_torch(np.concatenate(parts), self.dtype)

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
        attributes: dict[str, Any] = {name: array.attrs.asdict() for name, array in group.arrays()}
        return {name: attributes[name]["names"] for name in sorted(attributes)}

    @property
    def finished(self) -> np.ndarray:
        """`(shards,)` bool."""
        if not self.has(MARKER):  # killed while it was being created
            return np.zeros(-(-self.rows // self.layout.shard_rows), bool)
        return np.asarray(self.array(MARKER)[:]) > 0

    def check_finished(self) -> None:
        """Raises `UserError` where shards are missing."""
        if not self.finished.all():
            raise UserError(f"store {self.path}: is not finished; run the harvest again to complete it")

    def statistics(self, site: str) -> Statistics:
        """The statistics of all finished shards, merged (Chan et al. 1979: pairwise means and squared deviations)."""
        done = self.finished
        counts = np.asarray(self.array(MARKER)[:])[done].astype(np.float64)
        means = np.asarray(self.array(f"statistics/mean/{site}")[:])[done]
        squares = np.asarray(self.array(f"statistics/squares/{site}")[:])[done]
        norms = np.asarray(self.array(f"statistics/norm/{site}")[:])[done]
        rows = counts.sum()
        mean = counts @ means / rows
        variance = (squares.sum(0) + counts @ (means - mean) ** 2) / rows
        return Statistics(int(rows), mean, variance, float(counts @ norms / rows))
