"""The progress bar of every long job: rate and time left; a new figure every two seconds where output is a log."""

import sys
from typing import Any

from tqdm import tqdm


def progress(total: int, doing: str, unit: str = "row", done: int = 0, shown: bool = True) -> "tqdm[Any]":
    interval = 0.5 if sys.stderr.isatty() else 2
    return tqdm(
        total=total, initial=done, desc=doing, unit=unit, unit_scale=True, mininterval=interval, disable=not shown
    )
