"""Files that are either whole or not there."""

import contextlib
import json
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

from harvest.errors import UserError


def make_folder(path: pathlib.Path) -> None:
    """Create `path` and its parents; a folder that can't be made or written is a `UserError`."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):  # has no name, so that a kill leaves nothing
            pass
    except OSError as error:
        raise UserError(f"output folder {path}: cannot be written ({error.strerror})") from None


def existing(path: pathlib.Path) -> pathlib.Path:
    """`path`, or the nearest folder around it that is there."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def write_text(path: pathlib.Path, text: str) -> None:
    """As `write_bytes`, in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: pathlib.Path, data: bytes) -> None:
    """Write beside and rename: a reader sees the old file or the new one, never half of one.

    The name beside is always the same, so that the next run replaces what a killed one left. One writer at a time.
    """
    beside = path.with_name(f".{path.name}.partial")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


def write_json(path: pathlib.Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: pathlib.Path, what: str) -> Any:
    """`what` names the file in the `UserError` that a missing or broken one becomes."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{what} {path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{what} {path}: is not JSON ({error})") from None


def differences_of(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Every leaf that differs: its key as a dotted path, and both values (None where there is none)."""
    found = []
    for key in sorted({*one, *other}):
        ours, theirs = one.get(key), other.get(key)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            found += differences_of(ours, theirs, f"{prefix}{key}.")
        elif ours != theirs:
            found.append((f"{prefix}{key}", ours, theirs))
    return found
