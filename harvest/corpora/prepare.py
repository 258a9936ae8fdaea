"""Turn a corpus into token sequences with labels; `harvest.corpora.corpus` says how they lie on disk and reads them."""

import hashlib
import json
import pathlib
import shutil
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import zarr

from harvest.config import CorpusSpec
from harvest.corpora import documentation
from harvest.corpora.corpus import SCHEMA, Corpus
from harvest.corpora.documents import Document
from harvest.errors import UserError
from harvest.files import make_folder
from harvest.models.vocabulary import token_bytes
from harvest.progress import progress

CHUNK_BYTES = 2**20
DOCUMENTS_IN_A_BATCH = 256


def prepare(spec: CorpusSpec, tokenizer: Any, output: pathlib.Path) -> dict[str, Any]:
    """Write the corpus that `spec` describes to the folder `output` and return its facts (the group's attributes).

    Documents are cut into sequences of at most `spec.context` tokens until exactly `spec.tokens` are kept. With
    `spec.bos` the tokenizer's beginning-of-sequence token starts every sequence, where it is not kept; no
    other special token is added, and text that spells one (`</s>`) is read as text.
    Memory holds one chunk per array, whatever the corpus's length. `output` is replaced once the new one is complete.
    Raises `UserError` where no token is found, or where `output` is something other than a corpus.
    """
    _check_replaceable(output)
    make_folder(output.parent)
    beside = output.with_name(f".{output.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        facts = _write(spec, tokenizer, beside)
        _replace(output, beside)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return facts


def _write(spec: CorpusSpec, tokenizer: Any, path: pathlib.Path) -> dict[str, Any]:
    writer = _Writer(zarr.create_group(path), documentation.LABEL_SETS)
    bos = _bos(spec, tokenizer)
    left_out: Counter[str] = Counter()
    source = documentation.documents(spec, left_out)
    with progress(spec.tokens, "corpus", "token") as bar:
        for document, ids in _tokenised(source, tokenizer):
            if len(ids) == 0:
                left_out["documents without a token"] += 1
                continue
            ids = ids[: spec.tokens - writer.rows]
            writer.add(document, ids, bos, spec.context)
            bar.update(len(ids))
            if writer.rows == spec.tokens:
                break
    if writer.rows == 0:
        read = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items())) or "no document found"
        raise UserError(f"documentation: {spec.documentation!r} gives no text ({read})")
    facts = {
        "schema": SCHEMA,
        "spec": spec.model_dump(mode="json"),
        "complete": writer.rows == spec.tokens,  # false: the corpus ended before the budget was reached
        "left_out": dict(sorted(left_out.items())),
        **writer.finish(token_bytes(tokenizer)),
    }
    writer.group.update_attributes(facts)
    return facts


def _bos(spec: CorpusSpec, tokenizer: Any) -> int | None:
    """The token that begins every sequence, if there is one."""
    bos: int | None = tokenizer.bos_token_id
    return bos if spec.bos else None


def _tokenised(documents: Iterator[Document], tokenizer: Any) -> Iterator[tuple[Document, np.ndarray]]:
    while batch := list(islice(documents, DOCUMENTS_IN_A_BATCH)):
        texts = [document.text for document in batch]
        # Documentation of language models is full of `<s>` and `<|endoftext|>`: as special tokens they would be
        # control characters in the middle of a text.
        encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)
        for document, ids in zip(batch, encoded["input_ids"], strict=True):
            yield document, np.array(ids, dtype=np.int32)


class _Writer:
    """Appends documents to the arrays of a corpus."""

    def __init__(self, group: zarr.Group, label_sets: tuple[str, ...]) -> None:
        self.group = group
        self.label_sets = label_sets
        self.numbers: dict[str, dict[str, int]] = {name: {} for name in label_sets}
        self.documents = self.rows = self.tokens = self.sequences = self.longest = 0
        int32 = ["tokens", "document", "position", *(f"labels/{name}" for name in label_sets)]
        int64 = ["sequences", "row_offsets", "documents/offsets", "vocabulary/offsets"]
        kinds = {"keep": "bool", "documents/bytes": "uint8", "vocabulary/bytes": "uint8"}
        kinds |= dict.fromkeys(int32, "int32") | dict.fromkeys(int64, "int64")
        self.arrays = {path: _Array(group, path, np.dtype(kind)) for path, kind in kinds.items()}
        for path in int64:
            self.arrays[path].append(np.zeros(1, np.int64))
        self._name_bytes = 0

    def add(self, document: Document, ids: np.ndarray, bos: int | None, context: int) -> None:
        """Cut `ids` into sequences of at most `context` tokens, each after a `bos` if there is one."""
        step = context - (bos is not None)
        starts = np.arange(0, len(ids), step)
        stops = np.append(starts[1:], len(ids))
        position = np.arange(len(ids))
        ends = stops
        if bos is not None:
            ids, position = np.insert(ids, starts, bos), np.insert(position, starts, -1)
            ends = stops + np.arange(1, len(stops) + 1)
        columns = {"tokens": ids, "position": position, "keep": position >= 0}
        columns["document"] = np.full(len(ids), self.documents)
        for name in self.label_sets:
            columns[f"labels/{name}"] = np.full(len(ids), self._label(name, document))
        columns["sequences"], columns["row_offsets"] = self.tokens + ends, self.rows + stops
        name_bytes = np.frombuffer(document.name.encode(), np.uint8)
        self._name_bytes += len(name_bytes)
        columns["documents/bytes"], columns["documents/offsets"] = name_bytes, np.array([self._name_bytes])
        for path, values in columns.items():
            self.arrays[path].append(values)
        self.documents += 1
        self.sequences += len(starts)
        self.longest = max(self.longest, int(np.diff(ends, prepend=0).max()))
        self.tokens, self.rows = self.tokens + int(ends[-1]), self.rows + int(stops[-1])

    def _label(self, name: str, document: Document) -> int:
        label = document.labels.get(name)
        return -1 if label is None else self.numbers[name].setdefault(label, len(self.numbers[name]))

    def finish(self, vocabulary: list[bytes]) -> dict[str, Any]:
        """Write what is still held; returns the counts, and the fingerprint: a SHA-256 of all arrays and names."""
        self.arrays["vocabulary/bytes"].append(np.frombuffer(b"".join(vocabulary), np.uint8))
        self.arrays["vocabulary/offsets"].append(np.cumsum([len(piece) for piece in vocabulary]))
        contents = {path: array.finish() for path, array in self.arrays.items()}
        labels = {name: list(numbers) for name, numbers in self.numbers.items()}
        for name, names in labels.items():
            self.arrays[f"labels/{name}"].array.update_attributes({"names": names})
        whole = json.dumps({"arrays": contents, "labels": labels}, sort_keys=True)
        counts = {key: getattr(self, key) for key in ("documents", "sequences", "tokens", "rows", "longest")}
        return {**counts, "fingerprint": hashlib.sha256(whole.encode()).hexdigest()}


class _Array:
    """A one-dimensional array that grows by whole chunks, and the SHA-256 of its contents."""

    def __init__(self, group: zarr.Group, path: str, dtype: np.dtype[Any]) -> None:
        self.chunk = CHUNK_BYTES // dtype.itemsize
        self.array = group.create_array(path, shape=(0,), dtype=dtype, chunks=(self.chunk,))
        self.dtype = dtype
        self.held: list[np.ndarray] = []
        self.count = 0
        self.hash = hashlib.sha256(dtype.str.encode())

    def append(self, values: np.ndarray) -> None:
        self.held.append(values.astype(self.dtype))
        self.count += len(values)
        if self.count >= self.chunk:
            self._write(self.count // self.chunk * self.chunk)

    def finish(self) -> str:
        self._write(self.count)
        return self.hash.hexdigest()

    def _write(self, count: int) -> None:
        held = np.concatenate([*self.held, np.empty(0, self.dtype)])
        whole, rest = held[:count], held[count:].copy()
        end = self.array.shape[0]
        self.array.resize((end + count,))
        self.array[end:] = whole
        self.hash.update(whole.tobytes())
        self.held, self.count = [rest], len(rest)


def _check_replaceable(output: pathlib.Path) -> None:
    """Refuse to delete what is no corpus."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    try:
        Corpus(output)
    except UserError:
        raise UserError(
            f"corpus {output}: exists and is no corpus of this version; delete it or name another"
        ) from None


def _replace(output: pathlib.Path, beside: pathlib.Path) -> None:
    """A folder can't be renamed over another, so the old one steps aside first; half of one is never seen."""
    old = output.with_name(f".{output.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        output.rename(old)
    beside.rename(output)
    shutil.rmtree(old, ignore_errors=True)
