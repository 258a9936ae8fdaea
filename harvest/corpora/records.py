"""Documents from a dataset on the Hugging Face Hub or from local files, one a record, read as a stream."""

import glob
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from harvest.config import CorpusSpec
from harvest.corpora.documents import Document, LeftOut
from harvest.corpora.tables import Table, open_dataset, open_file
from harvest.errors import UserError


def documents(spec: CorpusSpec, left_out: LeftOut, to_text: Callable[[Any], str | None]) -> Iterator[Document]:
    """Every record's text, with its labels, in the order of the dataset or of the files' paths.

    `to_text` makes text of what a record has in `spec.text_column`; None where it is none. `left_out` takes what was
    read and not yielded.
    Raises `UserError` for files that are not there or of an unknown kind, a dataset out of reach, and columns that do
    not exist.
    """
    for what, table, labels in _tables(spec, left_out):
        if table.columns:
            check_columns(what, table, spec.text_column, spec.labels)
        else:
            left_out.add("files without records", what)
        for name, record in table.rows:
            text = to_text(record.get(spec.text_column))
            if text is None:
                left_out.add("documents that are not text", name)
            elif not text.strip():
                left_out.add("empty documents", name)
            elif not _is_unicode(text):
                left_out.add("documents that are not Unicode text", name)
            else:
                yield Document(text, labels | labels_of(table, record, spec.labels), writable(name))


def matching_files(pattern: str) -> list[pathlib.Path]:
    """The files that a path or pattern stands for, in the order they are read."""
    # A file's own name may hold what would mean something in a pattern. `Path.glob` takes no absolute one.
    found = [pattern] if pathlib.Path(pattern).is_file() else glob.glob(pattern, recursive=True)  # noqa: PTH207
    return sorted({path for path in map(pathlib.Path, found) if path.is_file()})


def files_of(patterns: Sequence[str], like: str = "*.txt") -> list[pathlib.Path]:
    """The files of all patterns, each once. Raises `UserError` for a pattern that no file matches."""
    found = {pattern: matching_files(pattern) for pattern in patterns}
    if empty := [pattern for pattern, files in found.items() if not files]:
        folder = pathlib.Path(empty[0]).is_dir()
        raise UserError(f"files: {empty[0]}: {f'a folder; give {empty[0]}/{like}' if folder else 'no such file'}")
    return list(dict.fromkeys(path for files in found.values() for path in files))


def _tables(spec: CorpusSpec, left_out: LeftOut) -> Iterator[tuple[str, Table, dict[str, str]]]:
    """(what an error calls it, its records, the labels of all of them)"""
    wanted = [spec.text_column, *spec.labels]
    if spec.files is None:
        name = str(spec.dataset)
        yield f"dataset {name}", open_dataset(name, spec.subset, spec.split, spec.revision, wanted), {}
        return
    for path in files_of(spec.files):
        yield f"files: {path}", open_file(path, wanted, left_out), {"source": writable(path.name)}


def check_columns(what: str, table: Table, column: str, labels: Sequence[str]) -> None:
    """Raises `UserError` where the table that errors call `what` lacks one of these."""
    for key, columns in (("column", [column]), ("labels", labels)):
        for column in columns:
            if column not in table.columns:
                raise UserError(f"{key}: {column}: no such column in {what}; it has {', '.join(table.columns)}")


def labels_of(table: Table, record: Mapping[str, Any], columns: Sequence[str]) -> dict[str, str]:
    """What a record says in those of these columns in which it says something."""
    found = {column: _label(table.classes.get(column), record.get(column)) for column in columns}
    return {column: label for column, label in found.items() if label is not None}


def _label(names: Sequence[str] | None, value: Any) -> str | None:
    """The name of a class that the dataset numbers; anything else as text."""
    if value is None:
        return None
    if names is not None and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None
    return writable(str(value))


def writable(text: str) -> str:
    """Names and labels are written as UTF-8; what cannot be becomes a question mark."""
    return text.encode(errors="replace").decode()


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
