"""Encoded rows latent by latent: every activation of a latent together, and what the store knows of the rows.

Shapes: F latents, n active places of some latents.
"""

import itertools
import pathlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file
from scipy import sparse

from analyze.encoded import EncodedRows, check_disk
from analyze.plan import PLACE_BYTES
from harvest.files import make_folder
from harvest.joined import Place, open_store

GROUP_PLACES = 2**23
"""Active places that are in memory together."""


@dataclass(frozen=True)
class OfLatent:
    """All active places of one latent, in the order of rows."""

    latent: int
    values_n: np.ndarray
    columns: dict[str, np.ndarray]
    """Column -> its value in the row of each place, `(n,)`."""


class ByLatent:
    """A second copy of encoded rows beside them, block by block: its reading is a slice of every block."""

    def __init__(self, encoded: EncodedRows, columns: Sequence[str]) -> None:
        self.encoded, self.columns = encoded, list(columns)
        self.folder = encoded.folder / "by_latent"
        make_folder(self.folder)
        self.missing = [number for number in range(len(encoded.ranges)) if not self._file(number).exists()]

    def check_disk(self, places: int) -> None:
        """Raises `UserError` where the copy of so many active places does not fit."""
        share = len(self.missing) / len(self.encoded.ranges)
        check_disk(self.folder, int(places * share * (PLACE_BYTES // 2) * (1 + len(self.columns))))

    def write(self, number: int, place: Place) -> None:
        """Write one block; it is whole or not there."""
        places, (start, stop) = self.encoded.block(number), self.encoded.ranges[number]
        shape = (places.rows, self.encoded.latents)
        by_latent = sparse.csr_array((places.values_N, places.latents_N, places.offsets_B1), shape).tocsc()
        tensors = {"offsets": by_latent.indptr.astype(np.int64), "values": by_latent.data}
        store = open_store(place)
        for column in self.columns:
            tensors[column] = np.asarray(store.array(column)[start:stop]).astype(np.int32)[by_latent.indices]
        beside = self._file(number).with_suffix(".partial")
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, beside)
        beside.replace(self._file(number))

    def groups(self, firing_F: np.ndarray) -> list[tuple[int, int]]:
        """Ranges of latents that are in memory together."""
        group_F = (np.cumsum(firing_F, dtype=np.int64) - 1) // GROUP_PLACES
        edges = [0, *(np.flatnonzero(np.diff(group_F)) + 1).tolist(), len(firing_F)]
        return list(itertools.pairwise(edges))

    def latents(self, first: int, last: int) -> Iterator[OfLatent]:
        """Latents `first` to `last`, with those that are never active."""
        parts: dict[str, list[np.ndarray]] = {name: [] for name in ("values", *self.columns)}
        latents = []
        for number in range(len(self.encoded.ranges)):
            with safe_open(self._file(number), "np") as file:
                offsets = file.get_slice("offsets")[first : last + 1]
                latents.append(np.repeat(np.arange(first, last), np.diff(offsets)))
                for name, found in parts.items():
                    start, stop = int(offsets[0]), int(offsets[-1])
                    # safetensors refuses a slice of nothing.
                    found.append(
                        file.get_slice(name)[start:stop]
                        if stop > start
                        else np.empty(0, np.float32 if name == "values" else np.int32)
                    )
        latent_n = np.concatenate(latents)
        order_n = np.argsort(latent_n, kind="stable")
        whole = {name: np.concatenate(found)[order_n] for name, found in parts.items()}
        edges = np.searchsorted(latent_n[order_n], np.arange(first, last + 1))
        for latent, (start, stop) in zip(range(first, last), itertools.pairwise(edges.tolist()), strict=True):
            columns = {name: whole[name][start:stop] for name in self.columns}
            yield OfLatent(latent, whole["values"][start:stop], columns)

    def _file(self, number: int) -> pathlib.Path:
        return self.folder / f"{number}.safetensors"
