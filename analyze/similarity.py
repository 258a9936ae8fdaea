"""The MonoSemanticity score: whether the rows in which a latent is active are alike in an independent embedding.

Shapes: F latents (those of a range), B rows of a block, E width of the embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from torch.nn.functional import normalize

from analyze.encoded import EncodedRows
from harvest.joined import Place, open_store

SUM_PLACES = 2**26
"""Entries of `sum_FE` in memory: half a gibibyte."""


@dataclass(frozen=True)
class Similarity:
    """Sums over rows, of activations a and of unit embeddings e. A row whose embedding is 0 has no direction, and is
    left out."""

    sum_FE: np.ndarray
    """Σ a e"""
    embeddings_E: np.ndarray
    """Σ e"""
    a_F: np.ndarray
    squares_F: np.ndarray
    """Σ a²"""
    active_F: np.ndarray
    least_F: np.ndarray
    """The smallest activation above 0."""
    rows: int

    @staticmethod
    def of(encoded: EncodedRows, number: int, latents: tuple[int, int], place: Place, site: str) -> "Similarity":
        """The sums of one block, for a range of latents. Products are in float32, sums over blocks in float64."""
        places, (start, stop) = encoded.block(number), encoded.ranges[number]
        store = open_store(place)
        e_BE = normalize(store.read(store.site(site), start, stop).float(), eps=1e-30).numpy()
        shape = (places.rows, encoded.latents)
        a_BF = sparse.csr_array((places.values_N, places.latents_N, places.offsets_B1), shape)
        if not (kept_B := e_BE.any(1)).all():
            a_BF, e_BE = a_BF[kept_B], e_BE[kept_B]
        a_FB = a_BF.tocsc()[:, slice(*latents)].T.tocsr()
        wide_FB = a_FB.astype(np.float64)
        active_F, least_F = np.diff(a_FB.indptr), np.full(a_FB.shape[0], np.inf)
        np.minimum.at(least_F, np.repeat(np.arange(len(active_F)), active_F), wide_FB.data)
        return Similarity(
            (a_FB @ e_BE).astype(np.float64),
            e_BE.sum(0, dtype=np.float64),
            wide_FB.sum(1),
            wide_FB.power(2).sum(1),
            active_F,
            least_F,
            len(e_BE),
        )

    def merge(self, later: "Similarity") -> "Similarity":
        ours, theirs = vars(self), vars(later)
        added = {name: ours[name] + theirs[name] for name in ours}
        return Similarity(**added | {"least_F": np.minimum(self.least_F, later.least_F)})

    def scores(self) -> np.ndarray:
        """Σ_{n≠m} ã_n ã_m ⟨e_n, e_m⟩ / Σ_{n≠m} ã_n ã_m, `(F,)` (Pach et al. 2025, arXiv 2504.02821), where ã is a,
        scaled from its smallest to its largest, 0 to 1; NaN for a latent with fewer than two rows above its smallest.

        In linear time (as arXiv 2602.12403): Σ_{n≠m} ã_n ã_m ⟨e_n, e_m⟩ = ‖Σ ã e‖² − Σ ã². The scale cancels out; the
        smallest is 0 unless a latent is active in every row.
        """
        least_F = np.where(self.active_F == self.rows, self.least_F, 0.0)
        sum_FE = self.sum_FE - least_F[:, None] * self.embeddings_E
        a_F = self.a_F - least_F * self.rows
        squares_F = self.squares_F - 2 * least_F * self.a_F + least_F**2 * self.rows
        weights_F = a_F**2 - squares_F
        # A single row has no pair; what is left of its weight is rounding.
        has_pairs_F = (self.active_F > 1) & (weights_F > 1e-9 * a_F**2)
        found_F: np.ndarray = (np.square(sum_FE).sum(1) - squares_F) / np.where(has_pairs_F, weights_F, np.nan)
        return found_F


def ranges(latents: int, width: int) -> Sequence[tuple[int, int]]:
    """Ranges of latents whose sums are in memory together."""
    step = max(1, SUM_PLACES // width)
    return [(first, min(first + step, latents)) for first in range(0, latents, step)]
