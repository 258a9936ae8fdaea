"""What a corpus is made of."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """One text with a name that a reader can find it by, and its label in each label set (`package` -> `torch`)."""

    text: str
    labels: Mapping[str, str]
    name: str
