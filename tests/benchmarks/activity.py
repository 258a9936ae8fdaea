"""What measuring a dictionary takes beside encoding its rows alone, and beside SAEDashboard."""

import contextlib
import itertools
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from analyze.activity import measure
from analyze.encoded import encode_store
from analyze.report.browser import write_browser
from harvest.files import write_json
from harvest.run import harvest
from harvest.source import Column
from harvest.store import Store
from tests.benchmarks.measure import record
from train.dictionary import Dictionary
from train.files import save
from train.sparsity import make_sparsity

WIDTH, LATENTS, L0, VOCABULARY, CONTEXT = 768, 16_384, 32, 5_000, 128
ROWS, ROWS_OF_PEER, LATENTS_OF_PEER = 2**20, 2**15, 256
PAIRS = 1
DASHBOARD = pathlib.Path(".peers/sae-dashboard/bin/python")


class Rows:
    """Given activations of given tokens, in contexts that have one of eight labels each."""

    dtype = "float32"
    widths: Mapping[str, int] = {"x": WIDTH}

    def __init__(self, tokens_B: np.ndarray, activations_BD: torch.Tensor) -> None:
        self.tokens_B, self.activations_BD, self.rows = tokens_B, activations_BD, len(tokens_B)
        self.facts: Mapping[str, Any] = {"rows": self.rows}
        text = [f" {number}".encode() for number in range(VOCABULARY)]
        self.columns: Mapping[str, Column] = {
            "rows/document": Column("int32"),
            "rows/token": Column("int32"),
            "rows/labels/kind": Column("int32", None, {"names": [f"kind {label}" for label in range(8)]}),
        }
        self.tables: Mapping[str, np.ndarray] = {
            "vocabulary/bytes": np.frombuffer(b"".join(text), np.uint8),
            "vocabulary/offsets": np.cumsum([0, *map(len, text)]),
        }

    def read_columns(self, start: int, stop: int) -> dict[str, np.ndarray]:
        document_B = np.arange(start, stop, dtype=np.int32) // CONTEXT
        labels = {"rows/labels/kind": document_B % 8}
        return {"rows/document": document_B, "rows/token": self.tokens_B[start:stop].astype(np.int32), **labels}

    def read_sites(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        return {"x": self.activations_BD[start:stop].clone()}


def run() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        return [_beside_encoding(folder / "encoding"), _beside_dashboard(folder / "dashboard")]


def _beside_encoding(folder: pathlib.Path) -> dict[str, Any]:
    folder.mkdir()
    rng = torch.Generator().manual_seed(0)
    tokens_B = _tokens(ROWS)
    vectors_VD = torch.randn(VOCABULARY, WIDTH, generator=rng)
    x_BD = vectors_VD[tokens_B] + 0.5 * torch.randn(ROWS, WIDTH, generator=rng)
    store = _store(folder, Rows(tokens_B, x_BD))
    _dictionary(folder / "dictionary", store)
    numbers, ours, alone = itertools.count(), [], []
    for _ in range(PAIRS):
        begun = time.perf_counter()
        measure(folder / "dictionary", store.path, folder / str(next(numbers)))
        ours.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        encode_store(folder / "dictionary", store.path, [0, ROWS], folder / "encoded")
        alone.append(time.perf_counter() - begun)
        shutil.rmtree(folder / "encoded")
    how = (
        f"{WIDTH} x {LATENTS} TopK of l0 {L0}, {ROWS} rows with tokens and 8 labels, {os.cpu_count()} CPU cores: the "
        f"whole measurement; peer: encoding alone; {PAIRS} pair"
    )
    return record("measuring / encoding alone", ours, alone, "s", how)


def _beside_dashboard(folder: pathlib.Path) -> dict[str, Any]:
    """Ours is measured and written as pages, for every latent; SAEDashboard computes its data, for some."""
    folder.mkdir()
    name = "latents on pages / SAEDashboard"
    if not DASHBOARD.exists():
        return record(name, [float("nan")], None, "latents/s", f"{DASHBOARD} is not there: `make peers` makes it")
    tokens_B = _tokens(ROWS_OF_PEER)
    np.save(folder / "tokens.npy", tokens_B.reshape(-1, CONTEXT))
    _dashboard(folder, "activations")
    store = _store(folder, Rows(tokens_B, torch.from_numpy(np.load(folder / "activations.npy"))))
    _dictionary(folder / "dictionary", store)
    ours, peer = [], []
    for number in range(PAIRS):
        begun = time.perf_counter()
        measured = folder / f"measured-{number}"
        measure(folder / "dictionary", store.path, measured)
        write_browser("dictionary", measured, folder / "dictionary", folder / f"report-{number}")
        ours.append(LATENTS / (time.perf_counter() - begun))
        peer.append(LATENTS_OF_PEER / float(_dashboard(folder, str(LATENTS_OF_PEER)).split()[-1]))
    how = (
        f"{WIDTH} x {LATENTS} TopK of l0 {L0}, {ROWS_OF_PEER} tokens, {os.cpu_count()} CPU cores: measured and written "
        f"as pages; peer: SAEDashboard 0.8.0's runner for {LATENTS_OF_PEER} of the latents, unwritten; {PAIRS} pair"
    )
    return record(name, ours, peer, "latents/s", how)


def _tokens(rows: int) -> np.ndarray:
    """As frequent as words are: the n-th in proportion to 1 / n."""
    share_V = 1 / np.arange(1, VOCABULARY + 1)
    return np.random.default_rng(0).choice(VOCABULARY, rows, p=share_V / share_V.sum())


def _store(folder: pathlib.Path, source: Rows) -> Store:
    with contextlib.redirect_stdout(sys.stderr):
        harvest(source, folder / "activations.zarr", folder / "activations.manifest.json", {})
    return Store(folder / "activations.zarr")


def _dictionary(folder: pathlib.Path, store: Store) -> None:
    dictionary = Dictionary(WIDTH, WIDTH, make_sparsity("topk", L0, LATENTS), centered=True)
    dictionary.start(torch.Generator().manual_seed(1))
    spec = {"holdout": 0.05, "sparsity": {"topk": {"l0": L0}}}
    save(dictionary, folder, {"reads": ["x"], "writes": ["x"], "store": store.fingerprint, "spec": spec})
    write_json(folder / "training.json", {"kind": "sae", "reads": ["x"], "writes": ["x"], "spec": spec})


def _dashboard(folder: pathlib.Path, what: str) -> str:
    script = pathlib.Path(__file__).parent / "peers/features_sae_dashboard.py"
    done = subprocess.run(
        [str(DASHBOARD), str(script), str(folder), what], stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout
