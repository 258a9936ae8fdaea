"""What prepared corpora of text and of images share: a Zarr group with facts, and label sets with names."""

import pathlib
from typing import Any, ClassVar

import numpy as np
import zarr

from harvest.errors import UserError


class Prepared:
    """A group that a corpus was written to, opened for reading. Raises `UserError` if `path` is none of this schema."""

    schema: ClassVar[str]
    """What the group says it is, with the version of its layout."""

    def __init__(self, path: str | pathlib.Path) -> None:
        self.path = pathlib.Path(path)
        try:
            self.group = zarr.open_group(self.path, mode="r")
            self.facts: dict[str, Any] = dict(self.group.attrs.asdict())
        except (OSError, ValueError, KeyError):
            raise UserError(f"corpus {path}: is no Zarr v3 group; prepare the corpus first") from None
        found = self.facts.get("schema")
        if found != self.schema:
            raise UserError(f"corpus {path}: has schema {found!r}, this version reads {self.schema!r}")
        self.fingerprint: str = self.facts["fingerprint"]

    @property
    def labels(self) -> dict[str, list[str]]:
        """Label set -> its labels' names; `labels/<set>` holds indices into them, -1 for none."""
        group = self.group.get("labels")
        if not isinstance(group, zarr.Group):
            return {}
        attributes: dict[str, Any] = {name: array.attrs.asdict() for name, array in group.arrays()}
        return {name: attributes[name]["names"] for name in sorted(attributes)}

    def _string(self, path: str, number: int) -> str:
        """One of the strings at `path`: `bytes`, UTF-8, one after the other, and `offsets`."""
        begin, end = self._read(f"{path}/offsets", number, number + 2)
        return self._read(f"{path}/bytes", int(begin), int(end)).tobytes().decode()

    def _read(self, path: str, start: int, stop: int | None) -> np.ndarray:
        array = self.group[path]
        assert isinstance(array, zarr.Array)
        return np.asarray(array[start:stop])
