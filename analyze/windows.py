"""Look-ups for examples: what a latent does in rows around them, and what the store knows of these rows."""

import numpy as np
from scipy import sparse

from analyze.encoded import EncodedRows, Places
from harvest.store import Store

ROWS_AT_ONCE = 2**20


def activations_at(encoded: EncodedRows, latent_M: np.ndarray, rows_MW: np.ndarray) -> np.ndarray:
    """The activation of latent `latent_M[m]` in each of the rows `rows_MW[m]`: `(M, W)`; 0 where there is no such row.

    Every block is read once.
    """
    found_MW = np.zeros(rows_MW.shape, np.float32)
    for number, (start, stop) in enumerate(encoded.ranges):
        at = np.nonzero((rows_MW >= start) & (rows_MW < stop))
        if len(at[0]):
            found_MW[at] = _look_up(encoded.block(number), encoded.latents, latent_M[at[0]], rows_MW[at] - start)
    return found_MW


def _look_up(places: Places, latents: int, latent_n: np.ndarray, row_n: np.ndarray) -> np.ndarray:
    """Places by latent, then row, are in the order of one number: bisection finds each that is wanted."""
    by_row = sparse.csr_array((places.values_N, places.latents_N, places.offsets_B1), (places.rows, latents))
    by_latent = by_row.tocsc()
    if by_latent.nnz == 0:
        return np.zeros(len(latent_n), np.float32)
    key_N = np.repeat(np.arange(latents) * places.rows, np.diff(by_latent.indptr)) + by_latent.indices
    key_n = latent_n.astype(np.int64) * places.rows + row_n
    found_n = np.searchsorted(key_N, key_n).clip(max=len(key_N) - 1)
    return np.where(key_N[found_n] == key_n, by_latent.data[found_n], np.float32(0))


def column_at(store: Store, path: str, rows: np.ndarray) -> np.ndarray:
    """A column's values in these rows, whatever their shape and order; -1 where the store has no such row.

    Stretches of the column that have one of the rows are read once each, one after the other.
    """
    array, found = store.array(path), np.full(rows.shape, -1, np.int64)
    for start in range(0, store.rows, ROWS_AT_ONCE):
        here = (rows >= start) & (rows < min(start + ROWS_AT_ONCE, store.rows))
        if here.any():
            wanted = rows[here]
            first = int(wanted.min())
            found[here] = np.asarray(array[first : int(wanted.max()) + 1])[wanted - first]
    return found


def digits(values: np.ndarray, count: int) -> np.ndarray:
    """Rounded to some significant decimal digits, in float64, so that they are written with no more."""
    values = values.astype(np.float64)
    with np.errstate(divide="ignore"):
        exponent = np.where(values == 0, 0, np.floor(np.log10(np.abs(values)))) - (count - 1)
    large, small = 10.0 ** np.maximum(exponent, 0), 10.0 ** np.maximum(-exponent, 0)
    # Whole numbers divided by, or times, a power of ten: exactly what the decimal says.
    return np.asarray(np.rint(values * small / large) * large / small)
