"""Ground-truth feature matrices with bounded interference (arXiv 2512.05534, eq. 27 to 29)."""

import numpy as np

from harvest.errors import UserError

STEPS = 500
"""Gradient steps before giving up. Measured: 2 at the paper's defaults, 20 just above the Welch bound."""
MARGIN = 0.05
"""ε of eq. 28 as a share of M: the descent aims this far below the limit, so that it crosses it in few steps."""
PULL = 0.01
"""λ of eq. 28: how strongly every positive inner product is pulled towards zero, beside those above the limit."""
STEP_SIZE = 0.5
"""Pairs above the limit then move half-way at once; a crowded matrix takes smaller steps (see `feature_matrix`)."""


def welch_bound(features: int, width: int) -> float:
    """The least possible max |<w_i, w_j>| of n = `features` unit vectors in d = `width` dimensions; 0 if n <= d.

    L. Welch, "Lower bounds on the maximum cross correlation of signals" (1974): sqrt((n - d) / (d (n - 1))). It follows
    from ‖WᵀW‖_F² >= n²/d, and bounds the magnitude of the inner products. Eq. 28 limits their sign as well: with
    d + 1 < n <= 2d a limit below Welch's can still be met, in the end only by pairs of opposite features. The paper's
    scores are |<w_learned, w_true>|, which cannot tell opposites apart, so the bench takes Welch's bound as the limit.
    """
    return float(np.sqrt((features - width) / (width * (features - 1)))) if features > width else 0.0


def feature_matrix(features: int, width: int, interference: float, rng: np.random.Generator) -> np.ndarray:
    """Feature matrix W `(width, features)`, float32, unit columns, max_{i≠j} <w_i, w_j> <= `interference` (M).

    Gaussian columns, normalised (eq. 27); then gradient descent on
    Σ_{i≠j} max(0, <w_i,w_j> - (M-ε))² + λ Σ_{i≠j} max(0, <w_i,w_j>)² (eq. 28), normalised after each step (eq. 29).
    The descent runs in float64: the bench's sizes take a fraction of a second, and rounding to float32 at the end hides
    the last bits, in which processors differ.

    Raises:
        UserError: the descent did not get below `interference`.
    """
    w_ND = _unit_rows(rng.standard_normal((features, width)))
    best = np.inf
    for _ in range(STEPS):
        products_NN = w_ND @ w_ND.T
        np.fill_diagonal(products_NN, -1)
        best = min(best, products_NN.max())
        if best <= interference * (1 - 1e-6):  # leaves room for rounding to float32
            return np.ascontiguousarray(w_ND.T, dtype=np.float32)
        push_NN = np.maximum(products_NN - interference * (1 - MARGIN), 0) + PULL * np.maximum(products_NN, 0)
        # The largest row sum bounds the spectral norm: steps beyond its inverse make crowded columns coincide.
        w_ND = _unit_rows(w_ND - min(STEP_SIZE, 1 / push_NN.sum(axis=1).max()) * (push_NN @ w_ND))
    raise UserError(
        f"interference: {interference}: {features} features in width {width} were not found below it; the search "
        f"reached {best:.3g} (the Welch bound is {welch_bound(features, width):.3g}); ask for {best * 1.05:.3g} or more"
    )


def _unit_rows(w_ND: np.ndarray) -> np.ndarray:
    unit_ND: np.ndarray = w_ND / np.linalg.norm(w_ND, axis=1, keepdims=True)
    return unit_ND
