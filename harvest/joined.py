"""Several stores with the same rows, read as one: the same texts through two models, above all."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import zarr

from harvest.errors import UserError
from harvest.layout import Layout
from harvest.location import Location, absolute, folder_of
from harvest.store import Statistics, Store

Place = Location | Sequence[Location]
"""Where a store is, or several with the same rows."""


def open_store(place: Place) -> Store:
    """The store at `place`; of several, one that has all their sites, each called `<harvest>/<site>`.

    A harvest's name is that of its store's folder. Raises `UserError` where rows differ.
    """
    paths = [place] if isinstance(place, Location) else list(place)
    return Store(paths[0]) if len(paths) == 1 else JoinedStore(paths)


class JoinedStore(Store):
    """Row metadata, labels and vocabulary are those of the first store."""

    def __init__(self, paths: Sequence[Location]) -> None:
        stores = [Store(path) for path in paths]
        self.parts = {folder_of(store.path): store for store in stores}
        if len(self.parts) != len(paths):
            raise UserError(f"store: {', '.join(map(str, paths))}: their folders must have different names")
        (_, first), *others = self.parts.items()
        for _, other in others:
            check_same_rows(first, other)
            if first.dtype != other.dtype:
                which = f"stores {first.path} and {other.path}"
                raise UserError(f"{which}: {first.dtype} and {other.dtype}; both models must have the same dtype")
        self.place, self.path, self.group = [absolute(store.path) for store in stores], first.path, first.group
        self.first = first
        fingerprints = {name: part.fingerprint for name, part in self.parts.items()}
        self.fingerprint = hashlib.sha256(json.dumps(fingerprints).encode()).hexdigest()
        self.facts = {name: part.facts for name, part in self.parts.items()}
        self.rows, self.dtype, self.aliases = first.rows, first.dtype, {}
        self.remote = any(store.remote for store in stores)
        self.widths = {f"{name}/{site}": n for name, part in self.parts.items() for site, n in part.widths.items()}
        layouts = [part.layout for part in self.parts.values()]
        # The larger ones, so that no chunk of any store is read for two.
        self.layout = Layout(max(a.chunk_rows for a in layouts), max(a.shard_rows for a in layouts))

    def _part(self, name: str) -> tuple[str, Store, str]:
        harvest, _, site = name.partition("/")
        if harvest not in self.parts:
            raise UserError(f"{name}: no such site; they are called {', '.join(f'{h}/<site>' for h in self.parts)}")
        return harvest, self.parts[harvest], site

    def site(self, name: str) -> str:
        harvest, part, site = self._part(name)
        return f"{harvest}/{part.site(site)}"

    def read(self, site: str, start: int, stop: int) -> Any:
        _, part, name = self._part(site)
        return part.read(name, start, stop)

    def array(self, path: str) -> zarr.Array[Any]:
        kind, _, site = path.partition("/")
        if kind != "sites":
            return super().array(path)
        _, part, name = self._part(site)
        return part.array(f"sites/{name}")

    @property
    def finished(self) -> np.ndarray:
        return np.concatenate([part.finished for part in self.parts.values()])

    def check_finished(self) -> None:
        for part in self.parts.values():
            part.check_finished()

    def statistics(self, site: str) -> Statistics:
        _, part, name = self._part(site)
        return part.statistics(name)


def check_same_rows(one: Store, other: Store) -> None:
    """The same tokens of the same documents, whatever else differs; else a `UserError`."""
    one, other = (store.first if isinstance(store, JoinedStore) else store for store in (one, other))
    which = f"stores {one.path} and {other.path}"
    if one.rows != other.rows:
        raise UserError(f"{which}: {one.rows} and {other.rows} rows; both must be harvested from the same corpus")
    if "corpus" not in one.facts or "corpus" not in other.facts:
        raise UserError(f"{which}: only rows from a corpus can be told to be the same; the bench has many sites itself")
    if one.facts["corpus"] == other.facts["corpus"]:
        return
    if not (one.has("rows/token") or other.has("rows/token")):
        raise UserError(f"{which}: rows of images are only told by their corpus; both must be harvested from the same")
    for path in ("rows/document", "rows/position", "rows/token"):
        if one.has(path) != other.has(path):
            raise UserError(f"{which}: only one of them has {path}; both must be harvested from the same corpus")
        for start in range(0, one.rows, 2**20) if one.has(path) else ():
            ours, theirs = (np.asarray(store.array(path)[start : start + 2**20]) for store in (one, other))
            if (differ := np.flatnonzero(ours != theirs)).size:
                raise UserError(
                    f"{which}: {path} differs at row {start + differ[0]}: {ours[differ[0]]} and {theirs[differ[0]]}; "
                    "both must be harvested from the same corpus, and their tokenizers must agree"
                )
