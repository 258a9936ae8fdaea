"""Shuffled batches from a store on local disk: how fast they come, and how much memory a training run takes."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from harvest.memory import keep_buffers
from harvest.store import Store
from tests.benchmarks.measure import record
from tests.synthetic import Synthetic, synthetic_store
from train.batches import Batch, Batches
from train.pools import MIB

WIDTH, BATCH, ROWS = 768, 4096, 3 * 2**19
PAIRS = 3


def run() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        small, large = (_store(pathlib.Path(name) / f"{rows}", rows) for rows in (ROWS // 10, ROWS))
        figures = _peaks(small, large)
        keep_buffers()
        return [*figures, *_speeds(large)]


def _store(folder: pathlib.Path, rows: int) -> Store:
    folder.mkdir()
    return synthetic_store(folder, Synthetic(rows=rows, widths={"x": WIDTH}, dtype="bfloat16"))


def _speeds(store: Store) -> list[dict[str, Any]]:
    """In GB/s of rows: from the page cache beside two peers, and from the disk beside the disk itself."""
    shards = sorted(path for path in (store.path / "sites/x/c").rglob("*") if path.is_file())
    raw = store.path.with_name("raw")
    with raw.open("wb") as file:
        for at in range(0, store.rows, store.layout.shard_rows):
            store.read("x", at, at + store.layout.shard_rows).view(torch.uint16).numpy().tofile(file)
    what = f"{store.rows} rows of {WIDTH} bfloat16, batches of {BATCH}"
    peers: list[tuple[str, str, Callable[[], int]]] = [
        ("zarr in order", f"{what}; peer: Zarr alone, a shard at a time", lambda: _in_order(store)),
        (
            "a map's rows",
            f"{what}; peer: rows at random from a memory map of a raw file",
            lambda: _gather(raw, store.rows),
        ),
    ]
    figures = [
        _speed(f"shuffled batches / {name}", store, peer, how, lambda: _warm([*shards, raw]))
        for name, how, peer in peers
    ]
    how = f"{what}; peer: the files in order; caches emptied before each"
    in_order = lambda: sum(len(path.read_bytes()) for path in shards)  # noqa: E731
    return [*figures, _speed("shuffled batches / files, from the disk", store, in_order, how, lambda: _forget(shards))]


def _speed(name: str, store: Store, peer: Callable[[], int], how: str, prepare: Callable[[], None]) -> dict[str, Any]:
    ours, theirs = [], []
    steps = store.rows // BATCH
    stream = Batches(store, ["x"], BATCH, seed=0).iterate(0, (PAIRS + 2) * steps)
    _take(stream, steps)  # the first use of a buffer is the system's to pay
    for _ in range(PAIRS):
        prepare()
        ours.append(_rate(lambda: _take(stream, steps)))
        prepare()
        theirs.append(_rate(peer))
    return record(name, ours, theirs, "GB/s", f"{how}; {PAIRS} pairs")


def _rate(read: Callable[[], int]) -> float:
    begun = time.perf_counter()
    return read() / 1e9 / (time.perf_counter() - begun)


def _take(stream: Iterator[Batch], steps: int) -> int:
    return sum(next(stream).sites["x"].nbytes for _ in range(steps))


def _in_order(store: Store) -> int:
    array, rows = store.array("sites/x"), store.layout.shard_rows
    return sum(np.asarray(array[at : at + rows]).nbytes for at in range(0, store.rows, rows))


def _gather(raw: pathlib.Path, rows: int) -> int:
    mapped = np.memmap(raw, np.uint16, "r", shape=(rows, WIDTH))
    order = np.random.default_rng(0).permutation(rows)
    return sum(mapped[order[at : at + BATCH]].nbytes for at in range(0, rows, BATCH))


def _warm(files: list[pathlib.Path]) -> None:
    for path in files:
        path.read_bytes()


def _forget(files: list[pathlib.Path]) -> None:
    """Out of the page cache; needs no privilege."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _peaks(small: Store, large: Store) -> list[dict[str, Any]]:
    """Of whole `python -m train run`s."""
    latents, memory, rows = 4096, 256, small.rows
    flat = record(
        "peak memory, store of 2.4 GB / of 0.24 GB",
        [_peak(large, latents, memory, rows)],
        [_peak(small, latents, memory, rows)],
        "MiB",
        f"topk, {WIDTH} x {latents}, --memory {memory}, {rows} rows of either store",
    )
    latents, memory, rows = 64, 2048, large.rows
    promised = 4 * 2 * WIDTH * latents * 4 / MIB + memory + 1024
    whole = record(
        "peak memory / what is promised",
        [_peak(large, latents, memory, rows)],
        [promised],
        "MiB",
        f"topk, {WIDTH} x {latents}, the default --memory, a store of 2.4 GB; peer: weights, gradients, moments, the "
        "2 GiB of --memory, and 1 GiB",
    )
    return [flat, whole]


def _peak(store: Store, latents: int, memory: int, rows: int) -> float:
    spec = {"reads": ["x"], "latents": latents, "sparsity": {"topk": {"l0": 8}}, "tokens": rows, "batch": 2048}
    folder = store.path.parent
    places = ["--output", str(folder / "output"), "--checkpoints", str(folder / "checkpoints")]
    arguments = ["-m", "train", "run", json.dumps(spec), "--store", str(store.path), *places, "--memory", str(memory)]
    subprocess.run([sys.executable, *arguments], check=True)
    return float(json.loads((folder / "output/training.json").read_text())["peak_memory_bytes"]) / MIB
