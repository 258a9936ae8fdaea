"""The sparse codes of a store's rows, on disk: one pass encodes, and everything else that is measured reads these.

A folder holds `encoded.json` and one safetensors file a block of rows, written beside and renamed: a pass that was
killed goes on with the blocks that are missing. Codes take 8 bytes an active latent, where a row of activations takes
two a dimension, and reading them takes a hundredth of the time that encoding does.
"""

import hashlib
import itertools
import pathlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import dask
import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from analyze.plan import BATCH_PLACES, PLACE_BYTES
from analyze.variance import Reconstruction
from harvest.errors import UserError
from harvest.files import make_folder, read_json, write_json
from harvest.joined import Place, open_store
from harvest.progress import progress
from harvest.store import Store
from harvest.tasks import compute
from train.dictionary import Codes
from train.files import load
from train.kernels import DensePattern

BLOCK_PLACES = 2**22
"""Active places in one block, which are held until the block is done: about 150 MiB with what sorting them takes."""


@dataclass(frozen=True)
class Places:
    """The active places from row `start` on: row `start + b` has those from `offsets_B1[b]` to `offsets_B1[b + 1]`."""

    start: int
    offsets_B1: np.ndarray
    latents_N: np.ndarray
    values_N: np.ndarray

    @property
    def rows(self) -> int:
        return len(self.offsets_B1) - 1


class EncodedRows:
    """The codes of a store under a dictionary, opened for reading. `ranges` are the rows of each block, in order."""

    def __init__(self, folder: pathlib.Path) -> None:
        facts = read_json(folder / "encoded.json", "encoded rows")
        self.folder, self.latents = folder.absolute(), int(facts["latents"])
        self.ranges: list[tuple[int, int]] = [(start, stop) for start, stop in facts["ranges"]]

    @property
    def rows(self) -> int:
        return self.ranges[-1][1]

    @property
    def missing(self) -> list[int]:
        """Blocks that are not there yet."""
        return [number for number in range(len(self.ranges)) if not self._file(number).exists()]

    def block(self, number: int) -> Places:
        found = load_file(self._file(number))
        return Places(self.ranges[number][0], found["offsets"], found["latents"], found["values"])

    def reconstruction(self, number: int) -> Reconstruction:
        """How well a block's rows are reconstructed; it is the only other thing that the activations are needed for."""
        found = load_file(self._file(number))
        start, stop = self.ranges[number]
        return Reconstruction(stop - start, found["mean"], found["squares"], found["error"])

    def write(self, number: int, places: Places, reconstruction: Reconstruction) -> None:
        file = self._file(number)
        beside = file.with_suffix(".partial")
        tensors = {
            "offsets": places.offsets_B1,
            "latents": places.latents_N.astype(np.int32),
            "values": places.values_N,
            "mean": reconstruction.mean_R,
            "squares": reconstruction.squares_R,
            "error": reconstruction.error_R,
        }
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, beside)
        beside.replace(file)

    def _file(self, number: int) -> pathlib.Path:
        return self.folder / f"{number}.safetensors"


def encode_store(dictionary_folder: pathlib.Path, place: Place, edges: list[int], folder: pathlib.Path) -> EncodedRows:
    """Encode the rows between the first and the last of `edges`, with a block's end at each; continue what is there.

    Raises `UserError` where the codes would not fit on the disk.
    """
    store = open_store(place)
    dictionary, cfg = load(dictionary_folder)
    l0 = sum(method["l0"] for method in cfg["metadata"]["spec"]["sparsity"].values())
    block = block_rows(dictionary.latents, l0)
    ranges = [
        (start, min(start + block, last))
        for first, last in itertools.pairwise(edges)
        for start in range(first, last, block)
    ]
    weights = hashlib.sha256((dictionary_folder / "sae_weights.safetensors").read_bytes()).hexdigest()
    facts = {
        "latents": dictionary.latents,
        "ranges": [list(rows) for rows in ranges],
        "of": {"store": store.fingerprint, "weights": weights, "reads": cfg["metadata"]["reads"]},
    }
    _begin(folder, facts)
    encoded = EncodedRows(folder)
    missing = encoded.missing
    rows = sum(stop - start for start, stop in (ranges[number] for number in missing))
    check_disk(folder, int(rows * (l0 + 1) * PLACE_BYTES))
    encode = dask.delayed(_encode_block, pure=False)
    tasks = [encode(encoded, number, dictionary_folder.absolute(), store.place) for number in missing]
    sizes = (ranges[number][1] - ranges[number][0] for number in missing)
    with progress(rows, "encode") as bar:
        compute(tasks, bar=bar, amounts={task.key: size for task, size in zip(tasks, sizes, strict=True)})
    return encoded


def _begin(folder: pathlib.Path, facts: dict[str, Any]) -> None:
    """Keep the blocks of the same rows, dictionary and store; remove any others."""
    if folder.exists():
        try:
            same = read_json(folder / "encoded.json", "encoded rows") == facts
        except UserError:
            same = False
        if not same:
            shutil.rmtree(folder)
    make_folder(folder)
    write_json(folder / "encoded.json", facts)


def check_disk(folder: pathlib.Path, needed: int) -> None:
    """Raises `UserError` where so many bytes do not fit."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"output folder {folder}: needs {needed / 1e9:.1f} GB for a time, {free / 1e9:.1f} GB are free; "
            "make room, or name a folder on another disk"
        )


def block_rows(latents: int, l0: float) -> int:
    """Rows in a block: a whole number of batches, with about `BLOCK_PLACES` active places."""
    batch = batch_rows(latents)
    return max(1, int(BLOCK_PLACES / l0) // batch) * batch


def batch_rows(latents: int) -> int:
    """A power of two, as chunks are."""
    return 1 << max(0, (BATCH_PLACES // latents).bit_length() - 1)


@torch.inference_mode()
def _encode_block(encoded: EncodedRows, number: int, dictionary_folder: pathlib.Path, place: Place) -> None:
    """Encode and write one block."""
    store = open_store(place)
    dictionary, cfg = load(dictionary_folder)
    dictionary.to("cuda" if torch.cuda.is_available() else "cpu")
    reads, writes = cfg["metadata"]["reads"], cfg["metadata"]["writes"]
    start, stop = encoded.ranges[number]
    parts: list[tuple[np.ndarray, ...]] = []
    reconstruction: Reconstruction | None = None
    for first, last in itertools.pairwise([*range(start, stop, batch_rows(dictionary.latents)), stop]):
        x_BP = read_rows(store, reads, first, last).to(dictionary.b_dec.device)
        codes = dictionary.encode(x_BP)
        parts.append(tuple(part.cpu().numpy() for part in active_places(codes)))
        y_BR = x_BP if reads == writes else read_rows(store, writes, first, last).to(x_BP.device)
        batch = Reconstruction.of(y_BR, dictionary.decode(codes, x_BP))
        reconstruction = reconstruction.merge(batch) if reconstruction else batch
    assert reconstruction is not None, (start, stop)
    counts_B, latents_N, values_N = (np.concatenate(part) for part in zip(*parts, strict=True))
    offsets_B1 = np.concatenate([[0], np.cumsum(counts_B)])
    encoded.write(number, Places(start, offsets_B1, latents_N, values_N), reconstruction)


def active_places(codes: Codes) -> tuple[Tensor, Tensor, Tensor]:
    """How many latents are active in each row `(B,)`, which `(N,)`, and how much `(N,)`, row by row."""
    pattern, active = codes.pattern, codes.values_N > 0
    if isinstance(pattern, DensePattern):
        return active.sum(1), active.nonzero()[:, 1], codes.values_N[active]
    return (
        torch.bincount(pattern.rows_N[active], minlength=pattern.rows),
        pattern.latents_N[active],
        codes.values_N[active],
    )


def read_rows(store: Store, sites: list[str], start: int, stop: int) -> Tensor:
    """Activations of several sites side by side, `(stop - start, P)` in float32."""
    return torch.cat([store.read(store.site(site), start, stop).float() for site in sites], 1)


def blocks_of(encoded: EncodedRows, start: int, stop: int) -> Iterator[int]:
    """The blocks that hold rows `start` to `stop`."""
    return (number for number, (first, last) in enumerate(encoded.ranges) if first < stop and start < last)
