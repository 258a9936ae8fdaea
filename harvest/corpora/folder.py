"""A corpus's folder: the old one or the new one, never half of one."""

import pathlib
import shutil
from collections.abc import Callable
from typing import Any

from harvest.corpora.corpus import Corpus
from harvest.corpora.image_corpus import ImageCorpus, holds_images
from harvest.errors import UserError
from harvest.files import make_folder


def open_corpus(path: pathlib.Path) -> Corpus | ImageCorpus:
    """Whichever kind lies there. Raises `UserError` if none does."""
    return ImageCorpus(path) if holds_images(path) else Corpus(path)


def write_whole(output: pathlib.Path, write: Callable[[pathlib.Path], dict[str, Any]]) -> dict[str, Any]:
    """Have `write` make a corpus in a folder beside `output`, which is replaced once the new one is complete.

    Returns what `write` does. Raises `UserError` where `output` is something other than a corpus.
    """
    _check_replaceable(output)
    make_folder(output.parent)
    beside = output.with_name(f".{output.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        facts = write(beside)
        _replace(output, beside)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return facts


def _check_replaceable(output: pathlib.Path) -> None:
    """Refuse to delete what is no corpus."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    try:
        open_corpus(output)
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
