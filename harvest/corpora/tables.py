"""Rows with columns, from local files and from the Hugging Face Hub; few at a time, whatever their number."""

import csv
import io
import json
import lzma
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, TextIO

from harvest.corpora.documents import LeftOut
from harvest.errors import UserError

WHOLE = (".txt", ".md")
"""Suffixes of files that are one document."""
ROWS = (".jsonl", ".json", ".csv", ".parquet")
"""Suffixes of files with a document in every row."""
COMPRESSED = (".gz", ".zst", ".xz", ".bz2")
"""Suffixes that any of these but .parquet may have beside its own."""

LARGEST_CELL = 2**31 - 1  # characters of a CSV file's cell, which `csv` limits to 131,072 unless told otherwise
ROWS_FOR_COLUMNS = 100  # JSON names its columns row by row
ROWS_IN_A_BATCH = 256

Rows = Iterator[tuple[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class Table:
    """`rows` are (name, column -> value); `classes` names the integers of columns that hold class labels."""

    columns: Sequence[str]
    rows: Rows
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)


def open_file(path: pathlib.Path, wanted: list[str], left_out: LeftOut) -> Table:
    """A local file; its rows are called `name:0`, `name:1` and so on. Nothing here tries the network.

    A file that is one document has one row, called `name`, whose one column is the first that is wanted. Not read by
    the builders of `datasets`: they guess types (a text that looks like a date becomes one, `NA` becomes nothing), give
    up a file for one broken line, lock a cache for every file, and ask the network to count what was loaded.
    """
    suffix = path.with_suffix("").suffix if path.suffix in COMPRESSED else path.suffix
    if path.suffix == ".parquet":
        return _parquet(path, wanted)
    if suffix == ".csv":
        return _csv(path)
    if suffix in (".jsonl", ".json"):
        return _json(path, left_out)
    if suffix in WHOLE:
        return Table(wanted[:1], ((path.name, {wanted[0]: text}) for text in _whole(path)))
    known = ", ".join([*WHOLE, *ROWS])
    raise UserError(f"files: {path}: cannot be read; known are {known}, all but .parquet also compressed (.gz, .zst)")


def open_dataset(
    name: str, subset: str | None, split: str, revision: str | None, wanted: list[str], local: str = "files: [{}/…]"
) -> Table:
    """A dataset on the Hub, as a stream of its wanted columns; its rows are called `name:0`, `name:1` and so on.

    Images are left as they are encoded. `local` is how to say that a dataset is on this machine.
    """
    if pathlib.Path(name).exists():
        raise UserError(f"dataset {name}: is on this machine; give its files as {local.format(name)}")
    with _one_line_errors(name, local):
        datasets = _import_datasets()
        stream = datasets.load_dataset(name, subset, split=split, revision=revision, streaming=True)
        for column in [column for column, kind in (stream.features or {}).items() if isinstance(kind, datasets.Image)]:
            stream = stream.cast_column(column, datasets.Image(decode=False))
        columns = stream.column_names or list(next(iter(stream), {}))

    def rows() -> Rows:
        with _one_line_errors(name, local):
            for number, row in enumerate(stream.select_columns(wanted)):
                yield f"{name}:{number}", row

    return Table(columns, rows(), _classes(stream.features or {}))


def _import_datasets() -> Any:
    """The module `datasets`, silenced, and without its count of what is loaded: nothing phones home."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import datasets
    import huggingface_hub

    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    huggingface_hub.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    return datasets


def _classes(features: Mapping[str, Any]) -> dict[str, list[str]]:
    kind = _import_datasets().ClassLabel
    return {column: list(feature.names) for column, feature in features.items() if isinstance(feature, kind)}


def _parquet(path: pathlib.Path, wanted: list[str]) -> Table:
    with _readable(path):
        from pyarrow import parquet

        file = parquet.ParquetFile(path)
        # Beside the columns' types, a file that `datasets` wrote says which hold class labels, and which JSON.
        datasets = _import_datasets()
        features = datasets.Features.from_arrow_schema(file.schema_arrow)
        for column in [column for column, kind in features.items() if isinstance(kind, datasets.Image)]:
            features[column] = datasets.Image(decode=False)

    def rows() -> Rows:
        with _readable(path), file:
            batches = file.iter_batches(ROWS_IN_A_BATCH, columns=wanted)
            for number, row in enumerate(row for batch in batches for row in batch.to_pylist()):
                yield f"{path.name}:{number}", features.decode_example(row)

    return Table(file.schema_arrow.names, rows(), _classes(features))


def _csv(path: pathlib.Path) -> Table:
    """Every cell is text; an empty one is none at all."""
    csv.field_size_limit(LARGEST_CELL)

    def lines() -> Iterator[list[str]]:
        with _readable(path), _text(path) as file:
            yield from (cells for cells in csv.reader(file, strict=True) if cells)

    found = lines()
    columns = next(found, [])
    rows = ({column: cell or None for column, cell in zip(columns, cells, strict=False)} for cells in found)
    return Table(columns, ((f"{path.name}:{number}", row) for number, row in enumerate(rows)))


def _json(path: pathlib.Path, left_out: LeftOut) -> Table:
    def rows() -> Rows:
        with _readable(path), _text(path) as file:
            for number, row in enumerate(_json_values(file)):
                if isinstance(row, dict):
                    yield f"{path.name}:{number}", row
                else:
                    left_out.add("rows that are not JSON objects", f"{path.name}:{number}")

    found = rows()
    first = list(islice(found, ROWS_FOR_COLUMNS))
    return Table(list(dict.fromkeys(column for _, row in first for column in row)), chain(first, found))


def _json_values(file: TextIO) -> Iterator[Any]:
    """One value a line, None for a broken one; or those of one list, which is read whole."""
    lines = (line for line in file if line.strip())
    first = next(lines, "")
    if first.lstrip().startswith("["):
        yield from json.loads(first + "".join(lines))
        return
    for line in chain([first] if first else [], lines):
        try:
            yield json.loads(line)
        except (ValueError, RecursionError):
            yield None


def _whole(path: pathlib.Path) -> Iterator[str]:
    with _readable(path), _text(path) as file:
        yield file.read()


def _text(path: pathlib.Path) -> TextIO:
    """Decompressed as the file's name says. Bytes that are not UTF-8 become halves of surrogate pairs, by which a
    document that holds them is known, and left out."""
    import pyarrow

    # pyarrow knows all of `COMPRESSED` but .xz. The text that is returned closes what it reads from.
    opened = lzma.LZMAFile if path.suffix == ".xz" else pyarrow.input_stream
    return io.TextIOWrapper(opened(os.fspath(path)), encoding="utf-8-sig", errors="surrogateescape", newline="")


@contextmanager
def _readable(path: pathlib.Path) -> Iterator[None]:
    """Whatever a library says of a broken file, as one line."""
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split())
        raise UserError(f"files: {path}: cannot be read: {text[:300] or type(error).__name__}") from error


@contextmanager
def _one_line_errors(name: str, local: str) -> Iterator[None]:
    """Whatever `datasets` raises, as one line; its own error stays attached as its cause."""
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split())
        away = ("couldn't connect", "offline mode", "Cannot reach", "Couldn't reach", "ConnectionError", "ConnectError")
        if any(sign in text or sign in type(error).__name__ for sign in away):
            raise UserError(
                f"dataset {name}: not in the Hugging Face cache, and the Hub is out of reach; with it in reach, run "
                f"`hf download {name} --repo-type dataset --local-dir DIRECTORY` and give its files as "
                f"{local.format('DIRECTORY')}"
            ) from error
        raise UserError(f"dataset {name}: cannot be read: {text[:300] or type(error).__name__}") from error
