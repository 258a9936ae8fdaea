"""Documents from a dataset on the Hugging Face Hub or from local files, one a record, read as a stream."""

import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from harvest.config import CorpusSpec
from harvest.corpora.documents import Document, LeftOut
from harvest.errors import UserError

WHOLE = (".txt", ".md")
"""Suffixes of files that are one document."""
BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
"""Suffixes of files of records, and what the datasets library reads them with."""
COMPRESSED = (".gz", ".zst", ".xz", ".bz2")


def documents(spec: CorpusSpec, left_out: LeftOut, to_text: Callable[[Any], str | None]) -> Iterator[Document]:
    """Every record's text, with its labels, in the order of the dataset or of the files' paths.

    `to_text` makes text of what a record has in `spec.text_column`; None where it is none. `left_out` takes what was
    read and not yielded.
    Raises `UserError` for files that are not there or of an unknown kind, a dataset out of reach, and columns that do
    not exist.
    """
    for name, labels, value in _values(spec, left_out):
        text = to_text(value)
        if text is None:
            left_out.add("documents that are not text", name)
        elif not text.strip():
            left_out.add("empty documents", name)
        elif not _is_unicode(text):
            left_out.add("documents that are not Unicode text", name)
        else:
            yield Document(text, labels, name)


def matching_files(pattern: str) -> list[pathlib.Path]:
    """The files that a path or pattern stands for, in the order they are read."""
    anchor = pathlib.Path(pattern).anchor
    return sorted(path for path in pathlib.Path(anchor).glob(pattern.removeprefix(anchor)) if path.is_file())


def _values(spec: CorpusSpec, left_out: LeftOut) -> Iterator[tuple[str, dict[str, str], Any]]:
    """(name, labels, what the text column holds) of each record."""
    if spec.files is None:
        source = {"path": spec.dataset, "name": spec.subset, "split": spec.split, "revision": spec.revision}
        yield from _records(spec, f"dataset {spec.dataset}", str(spec.dataset), {}, source)
        return
    found = {pattern: matching_files(pattern) for pattern in spec.files}
    if empty := [pattern for pattern, files in found.items() if not files]:
        raise UserError(f"files: {empty[0]}: no such file")
    for path in dict.fromkeys(path for files in found.values() for path in files):
        suffix = path.with_suffix("").suffix if path.suffix in COMPRESSED else path.suffix
        if suffix in WHOLE and path.suffix == suffix:
            try:
                yield path.name, {"source": path.name}, path.read_bytes().decode()
            except UnicodeDecodeError:
                left_out.add("documents that are not Unicode text", path.name)
        elif suffix in BUILDERS:
            source = {"path": BUILDERS[suffix], "data_files": str(path), "split": "train"}
            yield from _records(spec, f"files: {path}", path.name, {"source": path.name}, source)
        else:
            known = ", ".join([*WHOLE, *BUILDERS])
            raise UserError(f"files: {path}: cannot be read; known are {known}, records also compressed (.gz, .zst)")


def _records(
    spec: CorpusSpec, what: str, name: str, labels: Mapping[str, str], source: dict[str, Any]
) -> Iterator[tuple[str, dict[str, str], Any]]:
    # Set before the library is imported: nothing phones home.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    try:
        records = datasets.load_dataset(**source, streaming=True)
        features = records.features or {}
        for number, record in enumerate(records):
            if number == 0:
                _check_columns(spec, what, record)
            found = {column: _label(features.get(column), record[column]) for column in spec.labels}
            known = {column: label for column, label in found.items() if label is not None}
            yield f"{name}:{number}", {**labels, **known}, record[spec.text_column]
    except UserError:
        raise
    except Exception as error:
        raise UserError(_in_one_line(spec, what, error)) from error


def _check_columns(spec: CorpusSpec, what: str, record: Mapping[str, Any]) -> None:
    for key, columns in (("column", [spec.text_column]), ("labels", spec.labels)):
        for column in columns:
            if column not in record:
                raise UserError(f"{key}: {column}: no such column in {what}; it has {', '.join(record)}")


def _label(feature: Any, value: Any) -> str | None:
    """The name of a class that the dataset numbers; anything else as text."""
    if value is None:
        return None
    names = getattr(feature, "names", None)
    if names is not None and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None
    return str(value)


def _in_one_line(spec: CorpusSpec, what: str, error: Exception) -> str:
    text = " ".join(str(error).split())
    away = ("couldn't connect", "offline mode", "Cannot reach", "Couldn't reach", "ConnectionError", "ConnectError")
    if spec.dataset and any(sign in text or sign in type(error).__name__ for sign in away):
        return (
            f"{what}: not in the Hugging Face cache, and the Hub is out of reach; with it in reach, run `hf download "
            f"{spec.dataset} --repo-type dataset --local-dir DIRECTORY` and give its files as files: [DIRECTORY/…]"
        )
    return f"{what}: cannot be read: {text[:300] or type(error).__name__}"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
