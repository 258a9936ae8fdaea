"""Small stores of rows that are sparse sums of random directions: what a dictionary should find."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harvest.run import harvest
from harvest.source import Column
from harvest.store import Store


@dataclass
class Synthetic:
    """`features` concepts, each active in a share `active` of the rows, with a direction of its own at every site.

    Sites differ in scale and mean, as those of a model do.
    """

    rows: int = 8_000
    widths: Mapping[str, int] = field(default_factory=lambda: {"x": 24, "y": 16})
    features: int = 32
    active: float = 0.1
    dtype: str = "float32"
    facts: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Column] = field(default_factory=dict)
    tables: Mapping[str, np.ndarray] = field(default_factory=dict)

    def directions(self, site: str) -> torch.Tensor:
        """`(features, width)`, unit rows."""
        rng = torch.Generator().manual_seed(sum(site.encode()))
        return torch.nn.functional.normalize(torch.randn(self.features, self.widths[site], generator=rng))

    def scale_and_mean(self, site: str) -> tuple[float, torch.Tensor]:
        order = list(self.widths).index(site)
        return 0.05 * 30**order, torch.linspace(-1, 2, self.widths[site]) * 10**order

    def read_columns(self, start: int, stop: int) -> dict[str, np.ndarray]:
        return {}

    def read_sites(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        rng = torch.Generator().manual_seed(start)
        shape = (stop - start, self.features)
        active = torch.rand(shape, generator=rng) < self.active
        coefficients = active * (0.5 + torch.empty(shape).exponential_(generator=rng))
        found = {}
        for site in self.widths:
            scale, mean = self.scale_and_mean(site)
            found[site] = (coefficients @ self.directions(site) * scale + mean).to(getattr(torch, self.dtype))
        return found


def synthetic_store(folder: Path, source: Synthetic) -> Store:
    """Harvest `source` into `folder/activations.zarr`."""
    harvest(source, folder / "activations.zarr", folder / "activations.manifest.json", {})
    return Store(folder / "activations.zarr")
