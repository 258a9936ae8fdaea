"""What a corpus is made of."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

LISTED = 100
"""Names of what was left out that are kept; all are counted."""


@dataclass(frozen=True)
class Document:
    """One text with a name that a reader can find it by, and its label in each label set (`package` -> `torch`)."""

    text: str
    labels: Mapping[str, str]
    name: str


class LeftOut:
    """What was read and is in no corpus: how often for each reason, and the first names."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.names: list[str] = []

    def add(self, reason: str, name: str) -> None:
        self.counts[reason] += 1
        if len(self.names) < LISTED:
            self.names.append(f"{name}: {reason}".encode(errors="replace").decode())

    def __str__(self) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in sorted(self.counts.items())) or "no document found"
