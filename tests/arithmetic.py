"""A source of rows that costs nothing: every value is arithmetic on the row's number."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from harvest.source import Column


@dataclass
class Arithmetic:
    """Site `a` and a wider site `b`, three columns and a table. `seconds` is how long a shard takes to compute."""

    rows: int = 320
    dtype: str = "bfloat16"
    seconds: float = 0
    seed: int = 0
    widths: Mapping[str, int] = field(default_factory=lambda: {"layers.0.a": 3, "layers.1.b": 8})

    def __post_init__(self) -> None:
        self.facts: Mapping[str, Any] = {"seed": self.seed, "dtype": self.dtype, "sites": list(self.widths)}
        self.columns: Mapping[str, Column] = {
            "rows/document": Column("int32"),
            "rows/labels/parity": Column("int32", None, {"names": ["even", "odd"]}),
            "truth/c": Column("float32", 5),  # called as the folder in which Zarr keeps chunks
        }
        self.tables: Mapping[str, np.ndarray] = {"vocabulary/bytes": np.arange(9, dtype=np.uint8)}

    def read_columns(self, start: int, stop: int) -> dict[str, np.ndarray]:
        rows = np.arange(start, stop, dtype=np.int32)
        truth = np.sqrt(rows[:, None] + np.arange(5)).astype(np.float32)
        values = {"rows/document": rows // 7, "rows/labels/parity": rows % 2, "truth/c": truth}
        return {path: values[path] for path in self.columns}

    def read_sites(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        time.sleep(self.seconds)
        rows_N = torch.arange(start, stop, dtype=torch.float64)[:, None] + self.seed
        return {
            site: (torch.sin(rows_N * torch.arange(1, width + 1) * 12.9898) * 40 + width).to(getattr(torch, self.dtype))
            for site, width in self.widths.items()
        }
