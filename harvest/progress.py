"""The progress bar of every long job: rate and time left; one line every ten seconds where output is a log."""

import sys

from tqdm import tqdm


def progress(total: int, doing: str, unit: str = "row", done: int = 0, shown: bool = True) -> "tqdm[None]":
    interval = 0.5 if sys.stderr.isatty() else 10
    return tqdm(
        total=total, initial=done, desc=doing, unit=unit, unit_scale=True, mininterval=interval, disable=not shown
    )
