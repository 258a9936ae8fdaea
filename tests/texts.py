"""A store of text rows and a dictionary for it, small enough to compute everything in full."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from harvest.run import harvest
from harvest.source import Column
from harvest.store import Store
from train.dictionary import Dictionary
from train.files import save
from train.sparsity import make_sparsity

SITES = {"in": 6, "out": 4}


class Texts:
    """Documents given as lists of tokens (bytes). Activations are a token's own vector and a little of the row's."""

    dtype = "float32"
    widths: Mapping[str, int] = SITES

    def __init__(self, documents: list[list[bytes]], labels: list[str]) -> None:
        self.documents = documents
        vocabulary = sorted({token for document in documents for token in document})
        ids = {token: i for i, token in enumerate(vocabulary)}
        self.token = np.array([ids[token] for document in documents for token in document], np.int32)
        self.document = np.repeat(np.arange(len(documents), dtype=np.int32), [len(d) for d in documents])
        self.rows = len(self.token)
        names = sorted(set(labels))
        self.label = np.array([names.index(label) for label in labels], np.int32)[self.document]
        self.facts: Mapping[str, Any] = {"rows": self.rows}
        self.columns: Mapping[str, Column] = {
            "rows/document": Column("int32"),
            "rows/token": Column("int32"),
            "rows/labels/language": Column("int32", None, {"names": names}),
        }
        self.tables: Mapping[str, np.ndarray] = {
            "vocabulary/bytes": np.frombuffer(b"".join(vocabulary), np.uint8),
            "vocabulary/offsets": np.cumsum([0, *map(len, vocabulary)]),
        }
        random = torch.Generator().manual_seed(0)
        self.sites = {
            site: torch.randn(len(vocabulary), width, generator=random)[self.token]
            + 0.3 * torch.randn(self.rows, width, generator=random)
            + 2
            for site, width in SITES.items()
        }

    def read_columns(self, start: int, stop: int) -> dict[str, np.ndarray]:
        columns = {"rows/document": self.document, "rows/token": self.token, "rows/labels/language": self.label}
        return {path: values[start:stop] for path, values in columns.items()}

    def read_sites(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        return {site: x[start:stop].clone() for site, x in self.sites.items()}


def words(seed: int = 0, documents: int = 40) -> Texts:
    """Documents of 1 to 40 tokens from a vocabulary of 50; some end inside a character."""
    random = np.random.default_rng(seed)
    vocabulary = [f" w{i}".encode() for i in range(47)] + ["é".encode()[:1], "é".encode()[1:], b"\n"]
    found = [[vocabulary[i] for i in random.integers(0, 50, random.integers(1, 41))] for _ in range(documents)]
    return Texts(found, [("nynorsk", "deutsch")[i % 2] for i in range(documents)])


def make_store(source: Any, folder: pathlib.Path) -> Store:
    harvest(source, folder / "activations.zarr", folder / "activations.manifest.json", {})
    return Store(folder / "activations.zarr")


def make_dictionary(
    folder: pathlib.Path, store: Store, reads: list[str], writes: list[str], holdout: float = 0.2, dead: int = 3
) -> Dictionary:
    """Random weights, 30 latents of which the first `dead` never fire, 4 at most active in a row."""
    random = torch.Generator().manual_seed(1)
    read, written = (sum(store.widths[site] for site in sites) for sites in (reads, writes))
    dictionary = Dictionary(read, written, make_sparsity("topk", 4, 30), centered=reads == writes)
    dictionary.start(random)
    with torch.no_grad():
        dictionary.b_dec.copy_(torch.randn(written, generator=random))
        dictionary.b_enc.copy_(0.2 * torch.randn(30, generator=random) - 0.5)
        dictionary.b_enc[:dead] = -1e6
    spec = {"holdout": holdout, "sparsity": {"topk": {"l0": 4.0}}}
    save(dictionary, folder, {"reads": reads, "writes": writes, "store": store.fingerprint, "spec": spec})
    return dictionary.eval()
