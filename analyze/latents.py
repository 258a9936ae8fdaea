"""What each latent does over some rows: counts, sums, a histogram and the rows it is most active in.

Shapes: F latents, H histogram bins, E examples, W places of a window around an example; N active places in a range of
rows, n of them in the rows that count.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

EXAMPLES = 20
BINS_AN_OCTAVE, OCTAVES_BELOW, OCTAVES_ABOVE = 4, 12, 4


def histogram_edges(unit: float) -> np.ndarray:
    """`(H + 1,)`: quarter octaves from 2⁻¹² to 2⁴ units. A grid fixed beforehand needs one pass and can be added up."""
    return unit * 2.0 ** np.arange(-OCTAVES_BELOW, OCTAVES_ABOVE + 0.5 / BINS_AN_OCTAVE, 1 / BINS_AN_OCTAVE)


@dataclass(frozen=True)
class Places:
    """The active places from row `start` on: row `start + b` has those from `offsets_B1[b]` to `offsets_B1[b + 1]`."""

    start: int
    offsets_B1: np.ndarray
    latents_N: np.ndarray
    values_N: np.ndarray

    @property
    def rows(self) -> int:
        return len(self.offsets_B1) - 1


@dataclass(frozen=True)
class LatentStatistics:
    """Of all latents at once; its size does not depend on how many rows it covers.

    `histogram_FH` counts activations between given edges, those beyond in the outermost bins. `example_rows_FE` are row
    numbers, most active first, the lower row first among equals; -1, and activation 0, where a latent fired less
    often. `windows_FEW` are the latent's activations around each example, in row order.
    """

    sum_F: np.ndarray
    histogram_FH: np.ndarray
    example_rows_FE: np.ndarray
    example_values_FE: np.ndarray
    windows_FEW: np.ndarray

    @property
    def firing_F(self) -> np.ndarray:
        """In how many rows each latent is active."""
        firing_F: np.ndarray = self.histogram_FH.sum(1)
        return firing_F

    @staticmethod
    def of(
        places: Places, start: int, stop: int, latents: int, edges: np.ndarray, window: tuple[int, int]
    ) -> "LatentStatistics":
        """Of rows `start` to `stop`. Windows reach `window` rows before and after an example; `places` holds those."""
        by_latent = sparse.csr_array(
            (places.values_N, places.latents_N, places.offsets_B1), (places.rows, latents)
        ).tocsc()
        latents_N, rows_N = np.repeat(np.arange(latents), np.diff(by_latent.indptr)), by_latent.indices + places.start
        own_N = (rows_N >= start) & (rows_N < stop)
        latent_n, row_n, value_n = latents_N[own_N], rows_N[own_N], by_latent.data[own_N]
        bins = len(edges) - 1
        bin_n = np.searchsorted(edges[1:-1], value_n, side="right")
        histogram_FH = np.bincount(latent_n * bins + bin_n, minlength=latents * bins).reshape(latents, bins)
        candidates = bin_n >= _bin_of_last_example(histogram_FH)[latent_n]
        example_rows_FE, example_values_FE = _top(latent_n[candidates], row_n[candidates], value_n[candidates], latents)
        return LatentStatistics(
            np.bincount(latent_n, weights=value_n, minlength=latents),
            histogram_FH,
            example_rows_FE,
            example_values_FE,
            _windows(latents_N, rows_N, by_latent.data, example_rows_FE, window),
        )

    def merge(self, later: "LatentStatistics") -> "LatentStatistics":
        """Both together. The rows of `later` come after these: a stable sort keeps equal examples in row order."""
        values_FE = np.concatenate([self.example_values_FE, later.example_values_FE], 1)
        rows_FE = np.concatenate([self.example_rows_FE, later.example_rows_FE], 1)
        windows_FEW = np.concatenate([self.windows_FEW, later.windows_FEW], 1)
        best_FE = np.argsort(-values_FE, axis=1, kind="stable")[:, :EXAMPLES]
        return LatentStatistics(
            self.sum_F + later.sum_F,
            self.histogram_FH + later.histogram_FH,
            np.take_along_axis(rows_FE, best_FE, 1),
            np.take_along_axis(values_FE, best_FE, 1),
            np.take_along_axis(windows_FEW, best_FE[:, :, None], 1),
        )


def _bin_of_last_example(histogram_FH: np.ndarray) -> np.ndarray:
    """The bin below which a latent has no example: sorting the few activations above it is enough."""
    at_least_FH = histogram_FH[:, ::-1].cumsum(1)[:, ::-1]
    lowest_F: np.ndarray = (at_least_FH >= EXAMPLES).sum(1) - 1
    return lowest_F


def _top(latent_n: np.ndarray, row_n: np.ndarray, value_n: np.ndarray, latents: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and activations of each latent's examples: `(F, E)`."""
    order = np.lexsort((row_n, -value_n, latent_n))
    latent_n = latent_n[order]
    rank_n = np.arange(len(order)) - np.searchsorted(latent_n, latent_n)
    kept = rank_n < EXAMPLES
    rows_FE = np.full((latents, EXAMPLES), -1, np.int64)
    values_FE = np.zeros((latents, EXAMPLES), np.float32)
    rows_FE[latent_n[kept], rank_n[kept]] = row_n[order[kept]]
    values_FE[latent_n[kept], rank_n[kept]] = value_n[order[kept]]
    return rows_FE, values_FE


def _windows(
    latents_N: np.ndarray,
    rows_N: np.ndarray,
    values_N: np.ndarray,
    example_rows_FE: np.ndarray,
    window: tuple[int, int],
) -> np.ndarray:
    """The latent's own activations around its examples. Places come by latent, then row: bisection finds each."""
    before, after = window
    windows_FEW = np.zeros((*example_rows_FE.shape, before + 1 + after), np.float32)
    if len(rows_N) == 0:
        return windows_FEW
    first = int(rows_N.min()) - before
    stride = int(rows_N.max()) + after + 1 - first
    key_N = latents_N * stride + (rows_N - first)
    latent_M, example_M = np.nonzero(example_rows_FE >= 0)
    at_MW = example_rows_FE[latent_M, example_M, None] - first + np.arange(-before, after + 1)
    key_MW = latent_M[:, None] * stride + at_MW
    found_MW = np.searchsorted(key_N, key_MW).clip(max=len(key_N) - 1)
    windows_FEW[latent_M, example_M] = np.where(key_N[found_MW] == key_MW, values_N[found_MW], 0)
    return windows_FEW
