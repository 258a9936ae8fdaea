"""Which latents are active in the same rows: likely partners from samples, counted exactly in a second reading.

Shapes: F latents, K rows of a sample, C candidates of a latent, P pairs.
"""

import operator
from dataclasses import dataclass

import dask
import numpy as np
from scipy import sparse

from analyze.encoded import EncodedRows, Places
from analyze.latents import hash_of
from harvest.tasks import compute, merged

CANDIDATES = 16
PARTNERS = 8
LATENTS_AT_ONCE = 1024
OTHERS_AT_ONCE = 256


@dataclass(frozen=True)
class Cofiring:
    """Of each latent the partners with the largest correlation, strongest first: -1 and 0 where there are fewer.

    `jaccard`: of the rows in which either is active, the share in which both are. `correlation`: that of the two
    indicators of being active (the phi coefficient). Both are exact; only who is considered comes from samples.
    """

    latents_FX: np.ndarray
    jaccard_FX: np.ndarray
    correlation_FX: np.ndarray


def correlation(both: np.ndarray, one: np.ndarray, other: np.ndarray, rows: int) -> np.ndarray:
    """Phi coefficient from counts of rows; 0 where a latent is active in all rows or in none."""
    spread = np.sqrt(one * (rows - one)) * np.sqrt(other * (rows - other))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(spread > 0, (rows * both - one * other) / spread, 0.0))


def measure_cofiring(encoded: EncodedRows, firing_F: np.ndarray, sample_rows_FK: np.ndarray) -> Cofiring:
    candidates_FC = candidates(sample_rows_FK, firing_F, encoded.rows)
    latent_n, rank_n = np.nonzero(candidates_FC >= 0)
    partner_n = candidates_FC[latent_n, rank_n]
    # Each pair once, the more frequent latent last, in ascending order of that.
    swap_n = np.lexsort((np.stack([latent_n, partner_n]), firing_F[np.stack([latent_n, partner_n])]), axis=0)
    ordered_2n = np.take_along_axis(np.stack([latent_n, partner_n]), swap_n, 0)
    (other, one), pair_n = np.unique(ordered_2n[::-1], axis=1, return_inverse=True)
    count_later = dask.delayed(_count_in_block, pure=False)
    tasks = [count_later(encoded, number, one, other) for number in range(len(encoded.ranges))]
    (both,) = compute([merged(tasks, operator.add)])
    both_n = both[pair_n.ravel()]
    fired_F = firing_F.astype(np.float64)
    phi_FC, jaccard_FC = np.full(candidates_FC.shape, -np.inf), np.zeros(candidates_FC.shape)
    phi_FC[latent_n, rank_n] = correlation(both_n, fired_F[latent_n], fired_F[partner_n], encoded.rows)
    phi_FC[phi_FC <= 0] = -np.inf  # partners are those that are active together more often than by chance
    jaccard_FC[latent_n, rank_n] = both_n / (firing_F[latent_n] + firing_F[partner_n] - both_n)
    best_FX = np.lexsort((candidates_FC, -phi_FC), axis=1)[:, :PARTNERS]
    latents_FX, phi_FX, jaccard_FX = (
        np.take_along_axis(array, best_FX, 1) for array in (candidates_FC, phi_FC, jaccard_FC)
    )
    none_FX = np.isneginf(phi_FX)
    return Cofiring(
        np.where(none_FX, -1, latents_FX).astype(np.int32),
        np.where(none_FX, 0, jaccard_FX).astype(np.float32),
        np.where(none_FX, 0, phi_FX).astype(np.float32),
    )


def candidates(sample_rows_FK: np.ndarray, firing_F: np.ndarray, rows: int) -> np.ndarray:
    """`(F, C)`: whose sample shares rows with a latent's, by the correlation that this suggests; -1 for none.

    A latent's sample is all its rows up to a hash τ. Of the rows in which both of two latents are active, those below
    both τ are in both samples, so that there are about `shared / min τ` in all (τ as a share of all hashes).
    """
    latents = len(sample_rows_FK)
    latent_n, place_n = np.nonzero(sample_rows_FK >= 0)
    distinct, number_n = np.unique(sample_rows_FK[latent_n, place_n], return_inverse=True)
    sampled = sparse.csr_array((np.ones(len(latent_n), np.int32), (latent_n, number_n)), (latents, len(distinct)))
    whole_F = sample_rows_FK[:, -1] < 0
    share_F = np.where(whole_F, 1.0, hash_of(sample_rows_FK[:, -1]) / 2.0**63)
    found_FC = np.full((latents, CANDIDATES), -1, np.int64)
    by_row = sampled.T.tocsr()
    for first in range(0, latents, LATENTS_AT_ONCE):
        shared = (sampled[first : first + LATENTS_AT_ONCE] @ by_row).tocoo()
        one, other = shared.row + first, shared.col
        keep = one != other
        one, other, counted = one[keep], other[keep], shared.data[keep]
        # What a sample suggests can be more than there is.
        both = np.minimum(
            counted / np.minimum(share_F[one], share_F[other]), np.minimum(firing_F[one], firing_F[other])
        )
        phi = correlation(both, firing_F[one].astype(np.float64), firing_F[other], rows)
        order = np.argsort(
            one * 4.0 - phi, kind="stable"
        )  # a correlation is 1 at most: by latent, then from the largest
        one, other = one[order], other[order]
        rank = np.arange(len(one)) - np.searchsorted(one, one)
        best = rank < CANDIDATES
        found_FC[one[best], rank[best]] = other[best]
    return found_FC


def _count_in_block(encoded: EncodedRows, number: int, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return count_together(encoded.block(number), encoded.latents, one, other)


def count_together(places: Places, latents: int, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """In how many of these rows both latents of each pair are active: `(P,)`. `other` ascends.

    The rows of `one` are looked up among those of `other`: the sum over pairs of how often `one` is active, so let it
    be the rarer.
    """
    ones = np.ones(len(places.latents_N), np.int8)
    by_latent = sparse.csr_array((ones, places.latents_N, places.offsets_B1), (places.rows, latents)).tocsc()
    begins, row_N = by_latent.indptr.astype(np.int64), by_latent.indices
    counts = np.zeros(len(one), np.int64)
    for first in range(0, latents, OTHERS_AT_ONCE):
        pairs = slice(*np.searchsorted(other, [first, first + OTHERS_AT_ONCE]))
        others = np.arange(first, min(first + OTHERS_AT_ONCE, latents))
        active_OB = np.zeros((len(others), places.rows), bool)
        active_OB[np.repeat(others - first, np.diff(begins)[others]), row_N[begins[first] : begins[others[-1] + 1]]] = (
            True
        )
        length_P = np.diff(begins)[one[pairs]]
        ends_P = np.cumsum(length_P)
        place_n = np.arange(ends_P[-1] if len(ends_P) else 0) + np.repeat(
            begins[one[pairs]] - ends_P + length_P, length_P
        )
        both_n = active_OB[np.repeat(other[pairs] - first, length_P), row_N[place_n]]
        counts[pairs] = np.diff(np.concatenate([[0], np.cumsum(both_n)])[np.concatenate([[0], ends_P])])
    return counts
