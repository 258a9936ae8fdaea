"""Writes the arrays of a corpus: `harvest.corpora.corpus` says how they lie on disk and reads them."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr

from harvest.config import CorpusSpec
from harvest.corpora.documents import Document
from harvest.corpora.lexicon import Lexicon

CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class Tokens:
    """A document's tokens `(T,)`, which of them are special, and the number of each one's label in each lexicon."""

    ids: np.ndarray
    special: np.ndarray
    labels: dict[str, np.ndarray]


class CorpusWriter:
    """Appends documents to the arrays of a corpus, until `spec.tokens` rows are there."""

    def __init__(self, group: zarr.Group, spec: CorpusSpec, bos: int | None, lexicons: dict[str, Lexicon]) -> None:
        self.group, self.spec, self.bos = group, spec, bos
        self.numbers: dict[str, dict[str, int]] = {name: {} for name in spec.label_sets}
        self.numbers |= {
            name: {label: number for number, label in enumerate(lexicon.names)} for name, lexicon in lexicons.items()
        }
        self.documents = self.rows = self.tokens = self.sequences = self.longest = 0
        self.begun = 0
        """The token that the last sequence begins with."""
        int32 = ["tokens", "document", "position", *(f"labels/{name}" for name in self.numbers)]
        int64 = ["sequences", "row_offsets", "documents/offsets", "vocabulary/offsets"]
        kinds = {"keep": "bool", "documents/bytes": "uint8", "vocabulary/bytes": "uint8"}
        kinds |= dict.fromkeys(int32, "int32") | dict.fromkeys(int64, "int64")
        self.arrays = {path: GrowingArray(group, path, np.dtype(kind)) for path, kind in kinds.items()}
        for path in ("documents/offsets", "vocabulary/offsets"):
            self.arrays[path].append(np.zeros(1, np.int64))
        self._name_bytes = 0

    @property
    def left(self) -> int:
        """Rows until the corpus is complete."""
        return self.spec.tokens - self.rows

    def add(self, document: Document, tokens: Tokens) -> int:
        """Append a document, or as much of it as there are rows left for; returns its number of rows."""
        pieces, begins = self._pieces(len(tokens.ids))
        columns = self._columns(document, tokens, pieces)
        rows = np.cumsum(columns["keep"])
        if rows[-1] > self.left:
            length = int(np.searchsorted(rows, self.left)) + 1
            columns, rows = {path: values[:length] for path, values in columns.items()}, rows[:length]
        # A piece is moved by the beginnings that were put in before it.
        begins = (pieces + (np.arange(len(pieces)) if self.bos is not None else 0))[begins]
        begins = begins[begins < len(rows)]
        columns["sequences"] = self.tokens + begins
        columns["row_offsets"] = self.rows + np.concatenate([[0], rows])[begins]
        name_bytes = np.frombuffer(document.name.encode(errors="replace"), np.uint8)
        self._name_bytes += len(name_bytes)
        columns["documents/bytes"], columns["documents/offsets"] = name_bytes, np.array([self._name_bytes])
        for path, values in columns.items():
            self.arrays[path].append(values)
        self._measure(columns["sequences"])
        self.documents += 1
        self.tokens, self.rows = self.tokens + len(rows), self.rows + int(rows[-1])
        return int(rows[-1])

    def _pieces(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Where a document is cut, and which pieces begin a sequence: all but the first of a packed one."""
        before = int(self.bos is not None)
        step = self.spec.context - before
        room = self.spec.context - (self.tokens - self.begun) - before
        shared = self.spec.pack and self.tokens > 0 and room > 0
        pieces = np.concatenate([[0], np.arange(room if shared else step, length, step)])
        return pieces, np.arange(len(pieces)) >= int(shared)

    def _columns(self, document: Document, tokens: Tokens, pieces: np.ndarray) -> dict[str, np.ndarray]:
        """Of every token that the model reads, each piece after its beginning."""
        ordinary = ~tokens.special
        columns = {
            "tokens": tokens.ids,
            "position": np.where(ordinary, np.cumsum(ordinary) - 1, -1),
            "keep": ordinary,
            **{f"labels/{name}": values for name, values in tokens.labels.items()},
        }
        if self.bos is not None:
            beginning = dict.fromkeys(columns, -1) | {"tokens": self.bos, "keep": self.spec.bos == "keep"}
            columns = {path: np.insert(values, pieces, beginning[path]) for path, values in columns.items()}
        length = len(columns["tokens"])
        columns["document"] = np.full(length, self.documents)
        for name in self.spec.label_sets:
            # A beginning is of no document: it would draw every label's mean towards itself.
            columns[f"labels/{name}"] = np.where(columns["position"] < 0, -1, self._label(name, document))
        return columns

    def _measure(self, begins: np.ndarray) -> None:
        """Remember the longest sequence that has ended."""
        edges = np.concatenate([[self.begun], begins])
        self.longest = max(self.longest, int(np.diff(edges).max(initial=0)))
        self.sequences, self.begun = self.sequences + len(begins), int(edges[-1])

    def _label(self, name: str, document: Document) -> int:
        label = document.labels.get(name)
        return -1 if label is None else self.numbers[name].setdefault(label, len(self.numbers[name]))

    def finish(self, vocabulary: list[bytes]) -> dict[str, Any]:
        """Write what is still held; returns the counts, and the fingerprint: a SHA-256 of all arrays and names."""
        self.longest = max(self.longest, self.tokens - self.begun)
        self.arrays["sequences"].append(np.array([self.tokens]))
        self.arrays["row_offsets"].append(np.array([self.rows]))
        self.arrays["vocabulary/bytes"].append(np.frombuffer(b"".join(vocabulary), np.uint8))
        self.arrays["vocabulary/offsets"].append(np.cumsum([len(piece) for piece in vocabulary]))
        contents = {path: array.finish() for path, array in self.arrays.items()}
        labels = {name: list(numbers) for name, numbers in self.numbers.items()}
        for name, names in labels.items():
            self.arrays[f"labels/{name}"].array.update_attributes({"names": names})
        whole = json.dumps({"arrays": contents, "labels": labels}, sort_keys=True)
        counts = {key: getattr(self, key) for key in ("documents", "sequences", "tokens", "rows", "longest")}
        return {**counts, "fingerprint": hashlib.sha256(whole.encode()).hexdigest()}


class GrowingArray:
    """A one-dimensional array that grows by whole chunks, and the SHA-256 of its contents."""

    def __init__(self, group: zarr.Group, path: str, dtype: np.dtype[Any]) -> None:
        self.chunk = CHUNK_BYTES // dtype.itemsize
        self.array = group.create_array(path, shape=(0,), dtype=dtype, chunks=(self.chunk,))
        self.dtype = dtype
        self.held = bytearray()
        """What is not written yet, in one piece: an array for every document's few numbers takes ten times as much."""
        self.hash = hashlib.sha256(dtype.str.encode())

    def append(self, values: np.ndarray) -> None:
        self.held += values.astype(self.dtype).tobytes()
        count = len(self.held) // self.dtype.itemsize
        if count >= self.chunk:
            self._write(count // self.chunk * self.chunk)

    def finish(self) -> str:
        self._write(len(self.held) // self.dtype.itemsize)
        return self.hash.hexdigest()

    def _write(self, count: int) -> None:
        whole = bytes(self.held[: count * self.dtype.itemsize])
        del self.held[: len(whole)]
        end = self.array.shape[0]
        self.array.resize((end + count,))
        self.array[end:] = np.frombuffer(whole, self.dtype)
        self.hash.update(whole)
