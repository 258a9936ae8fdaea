"""How well sites are reconstructed: sums that can be taken in pieces and merged."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Reconstruction:
    """Over some rows and R written dimensions: the mean and the squared deviations of x, and the squared error of x̂."""

    rows: int
    mean_R: np.ndarray
    squares_R: np.ndarray
    error_R: np.ndarray

    @staticmethod
    def of(y_BR: Tensor, reconstruction_BR: Tensor) -> "Reconstruction":
        """Sums in float64, in the activations' own units."""
        y_BR = y_BR.double()
        mean_R = y_BR.mean(0)
        return Reconstruction(
            len(y_BR),
            mean_R.cpu().numpy(),
            (y_BR - mean_R).square().sum(0).cpu().numpy(),
            (y_BR - reconstruction_BR.double()).square().sum(0).cpu().numpy(),
        )

    def merge(self, other: "Reconstruction") -> "Reconstruction":
        """Both together (Chan et al. 1979)."""
        rows = self.rows + other.rows
        apart_R = other.mean_R - self.mean_R
        return Reconstruction(
            rows,
            self.mean_R + apart_R * (other.rows / rows),
            self.squares_R + other.squares_R + apart_R**2 * (self.rows * other.rows / rows),
            self.error_R + other.error_R,
        )

    def explained_variance(self, dimensions: slice = slice(None)) -> float | None:
        """`1 − Σ‖x − x̂‖² / Σ‖x − x̄‖²` over some dimensions; x̄ is the mean of these rows. None where x is constant."""
        total = float(self.squares_R[dimensions].sum())
        return 1 - float(self.error_R[dimensions].sum()) / total if total > 0 else None
