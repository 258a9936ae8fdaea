"""Where a store's rows come from: a model reading a corpus, or the Linear Representation Bench."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch


@dataclass(frozen=True)
class Column:
    """One array of row metadata: `(rows,)`, or `(rows, width)` where a width is given."""

    dtype: str
    width: int | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)


def label_columns(labels: Mapping[str, list[str]]) -> dict[str, Column]:
    """The column of every label set; its labels' names are in the attribute `names`, -1 stands for none."""
    return {f"rows/labels/{name}": Column("int32", None, {"names": names}) for name, names in labels.items()}


class Source(Protocol):
    """Rows as a pure function of their numbers, so that any shard can be made again, anywhere, with the same bytes.

    `read_sites` and `read_columns` must give the same values for the same range whatever was read before.
    """

    rows: int
    """How many rows there are; known before any is computed."""
    widths: Mapping[str, int]
    """Site name -> width of its activation vectors."""
    dtype: str
    """`float32`, `bfloat16` or `float16`: the type of every site's activations."""
    facts: Mapping[str, Any]
    """Everything that determines the rows' values, as JSON; its hash is the store's fingerprint."""
    columns: Mapping[str, Column]
    """Array path in the store (`rows/document`, `truth/coefficients`) -> its type."""
    tables: Mapping[str, np.ndarray]
    """Array path in the store -> an array that does not grow with the rows (`vocabulary/bytes`, `truth/features/x`)."""

    def read_columns(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Row metadata for rows `start` to `stop`, one array a column."""

    def read_sites(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        """Activations for rows `start` to `stop`: site -> `(stop - start, width)` on the CPU."""
