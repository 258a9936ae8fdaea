"""One-to-one matches of many directions with many others.

Shapes: M directions, N others, at least as many, of width R; C candidates of each.
"""

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from torch import Tensor

from analyze.directions import largest

CANDIDATES = 64
"""Others that a direction may be matched with at first."""


def match(directions_MR: Tensor, others_NR: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Which of the others each direction is matched with, so that the sum of products is the largest there is, and the
    products: both `(M,)`. Exact, as the Hungarian method is, whose time grows with M³ and memory with M · N.

    Only the largest products of each direction are candidates; besides, each may stay unmatched, which counts as much
    as the smallest of its candidates. No match of all is worth more than the best one of this problem, as what is no
    candidate is worth no more than that: where nobody stays unmatched in it, it is the best of all. Where some do, it
    is solved again with four times the candidates.
    """
    assert len(directions_MR) <= len(others_NR)
    count = CANDIDATES
    while True:
        values, which = largest(directions_MR, others_NR, min(count, len(others_NR)))
        other_M = _match(values.double().numpy(), which.numpy(), len(others_NR))
        if (other_M < len(others_NR)).all():
            return other_M, values.numpy()[which.numpy() == other_M[:, None]]
        count *= 4


def _match(values_MC: np.ndarray, which_MC: np.ndarray, others: int) -> np.ndarray:
    """The best match, `(M,)`; `others + i` where direction i stays unmatched, which none may if all are candidates."""
    directions, candidates = values_MC.shape
    if candidates < others:
        values_MC = np.column_stack([values_MC, values_MC[:, -1]])
        which_MC = np.column_stack([which_MC, others + np.arange(directions)])
    # All have one match, so that a constant changes nothing; and a cost of zero would be none.
    costs_MC = 1 + values_MC.max() - values_MC
    offsets = np.arange(directions + 1) * values_MC.shape[1]
    shape = (directions, others + directions)
    other_M: np.ndarray
    _, other_M = min_weight_full_bipartite_matching(
        sparse.csr_array((costs_MC.ravel(), which_MC.ravel(), offsets), shape)
    )
    return other_M
