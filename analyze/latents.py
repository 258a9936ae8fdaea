"""What each latent does over some rows: counts, sums, a histogram, the rows it is most active in, and rows by chance.

Shapes: F latents, H histogram bins, E examples, K rows of a sample, L labels; n active places in a range of rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from analyze.encoded import Places

EXAMPLES = 20
SAMPLE = 200
"""Rows drawn by chance from those in which a latent is active."""
BINS_AN_OCTAVE, OCTAVES_BELOW, OCTAVES_ABOVE = 4, 12, 4


def histogram_edges(unit: float) -> np.ndarray:
    """`(H + 1,)`: quarter octaves from 2⁻¹² to 2⁴ units. A grid fixed beforehand needs one pass and can be added up."""
    return unit * 2.0 ** np.arange(-OCTAVES_BELOW, OCTAVES_ABOVE + 0.5 / BINS_AN_OCTAVE, 1 / BINS_AN_OCTAVE)


def hash_of(rows: np.ndarray) -> np.ndarray:
    """A number as good as random for each row number, the same wherever it is asked for (SplitMix64's finaliser).

    The rows of smallest hash among a latent's are a sample of them without replacement; as the hash is the row's own,
    latents that are active in the same rows have the same samples (Cohen and Kaplan 2007, bottom-k sketches). -1, for
    none, comes after every row.
    """
    mixed = rows.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    hashed: np.ndarray = np.where(rows < 0, np.uint64(2**64 - 1), (mixed ^ (mixed >> np.uint64(31))) >> np.uint64(1))
    return hashed


@dataclass(frozen=True)
class LatentStatistics:
    """Of all latents at once; its size does not depend on how many rows it covers.

    `histogram_FH` counts activations between given edges, those beyond in the outermost bins. `example_rows_FE` are row
    numbers, most active first, the lower row first among equals; -1, and activation 0, where a latent fired less
    often. `sample_rows_FK` are the rows of smallest `hash_of`, in its order. Of each label set, `label_rows` `(L,)`
    counts each label's rows, `label_firing` `(F, L)` those in which a latent is active, and `label_sum` adds up its
    activations there.
    """

    sum_F: np.ndarray
    histogram_FH: np.ndarray
    example_rows_FE: np.ndarray
    example_values_FE: np.ndarray
    sample_rows_FK: np.ndarray
    sample_values_FK: np.ndarray
    label_rows: Mapping[str, np.ndarray]
    label_firing: Mapping[str, np.ndarray]
    label_sum: Mapping[str, np.ndarray]

    @property
    def firing_F(self) -> np.ndarray:
        """In how many rows each latent is active."""
        firing_F: np.ndarray = self.histogram_FH.sum(1)
        return firing_F

    @staticmethod
    def of(
        places: Places, latents: int, edges: np.ndarray, labels: Mapping[str, tuple[np.ndarray, int]]
    ) -> "LatentStatistics":
        """`labels`: set -> the label `(B,)` of each row of `places`, -1 for none, and how many labels there are."""
        by_row = sparse.csr_array((places.values_N, places.latents_N, places.offsets_B1), (places.rows, latents))
        by_latent = by_row.tocsc()
        latent_n = np.repeat(np.arange(latents), np.diff(by_latent.indptr))
        row_n, value_n = by_latent.indices.astype(np.int64) + places.start, by_latent.data
        bins = len(edges) - 1
        bin_n = np.searchsorted(edges[1:-1], value_n, side="right")
        histogram_FH = np.bincount(latent_n * bins + bin_n, minlength=latents * bins).reshape(latents, bins)
        candidates = bin_n >= _bin_of_last_example(histogram_FH)[latent_n]
        example_rows_FE, example_values_FE = _top(latent_n[candidates], row_n[candidates], value_n[candidates], latents)
        counted = {name: _by_label(by_row, *of_rows) for name, of_rows in labels.items()}
        return LatentStatistics(
            np.bincount(latent_n, weights=value_n, minlength=latents),
            histogram_FH,
            example_rows_FE,
            example_values_FE,
            *_sample(by_row, places.start),
            {name: np.bincount(of_B[of_B >= 0], minlength=count) for name, (of_B, count) in labels.items()},
            {name: firing_FL for name, (firing_FL, _) in counted.items()},
            {name: sum_FL for name, (_, sum_FL) in counted.items()},
        )

    def merge(self, later: "LatentStatistics") -> "LatentStatistics":
        """Both together. The rows of `later` come after these: a stable sort keeps equal examples in row order."""
        values_FX = np.concatenate([self.example_values_FE, later.example_values_FE], 1)
        rows_FX = np.concatenate([self.example_rows_FE, later.example_rows_FE], 1)
        best_FE = np.argsort(-values_FX, axis=1, kind="stable")[:, :EXAMPLES]
        drawn_FX = np.concatenate([self.sample_rows_FK, later.sample_rows_FK], 1)
        active_FX = np.concatenate([self.sample_values_FK, later.sample_values_FK], 1)
        drawn_FK = np.argsort(hash_of(drawn_FX), axis=1, kind="stable")[:, :SAMPLE]
        return LatentStatistics(
            self.sum_F + later.sum_F,
            self.histogram_FH + later.histogram_FH,
            np.take_along_axis(rows_FX, best_FE, 1),
            np.take_along_axis(values_FX, best_FE, 1),
            np.take_along_axis(drawn_FX, drawn_FK, 1),
            np.take_along_axis(active_FX, drawn_FK, 1),
            _added(self.label_rows, later.label_rows),
            _added(self.label_firing, later.label_firing),
            _added(self.label_sum, later.label_sum),
        )


def quantile_groups(
    sample_rows_FK: np.ndarray, sample_values_FK: np.ndarray, groups: int, shown: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and activations `(F, groups, shown)` of a sample, from the lowest tenth to the highest (with 10 groups).

    A latent's sampled activations in order are cut into groups of equal size, give or take one. Of each, those of
    smallest `hash_of` are shown, most active first; -1 and 0 where there are fewer.
    """
    latents, size = sample_rows_FK.shape
    there_F = (sample_rows_FK >= 0).sum(1)
    rank_FK = np.empty((latents, size), np.int64)  # the place of each sampled row by activation, from the lowest
    order_FK = np.argsort(np.where(sample_rows_FK >= 0, sample_values_FK, np.inf), axis=1, kind="stable")
    np.put_along_axis(rank_FK, order_FK, np.arange(size)[None], 1)
    group_FK = np.where(sample_rows_FK >= 0, rank_FK * groups // np.maximum(there_F, 1)[:, None], groups)
    rows_FGX = np.full((latents, groups, shown), -1, np.int64)
    values_FGX = np.zeros((latents, groups, shown), np.float32)
    for group in range(groups):
        # In the sample's own order, which is that of the hash: the first few of the group.
        first_FX = np.argsort(group_FK != group, axis=1, kind="stable")[:, :shown]
        mine_FX = np.take_along_axis(group_FK, first_FX, 1) == group
        values_FX = np.where(mine_FX, np.take_along_axis(sample_values_FK, first_FX, 1), 0)
        rows_FX = np.where(mine_FX, np.take_along_axis(sample_rows_FK, first_FX, 1), -1)
        most_FX = np.argsort(-values_FX, axis=1, kind="stable")
        rows_FGX[:, group] = np.take_along_axis(rows_FX, most_FX, 1)
        values_FGX[:, group] = np.take_along_axis(values_FX, most_FX, 1)
    return rows_FGX, values_FGX


def _added(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: counted + other[name] for name, counted in one.items()}


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


def _sample(by_row: sparse.csr_array, start: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and activations `(F, K)` of each latent's sample: columns list rows in the order these were put in."""
    order_B = np.argsort(hash_of(np.arange(start, start + by_row.shape[0])))
    by_latent = by_row[order_B].tocsc()
    place_FK = by_latent.indptr[:-1, None] + np.arange(SAMPLE)
    there_FK = place_FK < by_latent.indptr[1:, None]
    place_FK = np.where(there_FK, place_FK, 0)
    if by_latent.nnz == 0:
        return np.full(place_FK.shape, -1, np.int64), np.zeros(place_FK.shape, np.float32)
    rows_FK = np.where(there_FK, order_B[by_latent.indices[place_FK]] + start, -1)
    return rows_FK, np.where(there_FK, by_latent.data[place_FK], np.float32(0))


def _by_label(by_row: sparse.csr_array, label_B: np.ndarray, labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of each label in which a latent is active, and the sum of its activations there: `(F, L)`."""
    rows = np.flatnonzero(label_B >= 0)
    is_label_BL = sparse.csr_array((np.ones(len(rows)), (rows, label_B[rows])), (len(label_B), labels))
    firing = sparse.csr_array((np.ones(by_row.nnz), by_row.indices, by_row.indptr), by_row.shape)
    return (firing.T @ is_label_BL).toarray().astype(np.int32), (by_row.astype(np.float64).T @ is_label_BL).toarray()
