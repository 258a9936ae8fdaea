"""The approximate loss of sparse dictionary learning, its gradients and its activation patterns.

Shapes: N features, P width read, R width written, F latents. Unlike elsewhere in this project, matrices are laid out as
in the paper: W_p `(P, N)`, W_r `(R, N)`, W_E `(F, P)`, W_D `(R, F)`; there are no biases.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Sigma = Callable[[np.ndarray], np.ndarray]
"""σ over the last axis, with σ(z)_i ∈ {0, z_i} (eq. 10)."""


def relu(z: np.ndarray) -> np.ndarray:
    """max(0, z) (eq. 5)."""
    return z * (z > 0)


def jumprelu(threshold: float) -> Sigma:
    """z where z exceeds `threshold`, else 0 (eq. 6)."""
    return lambda z: np.where(z > threshold, z, 0)


def topk(k: int) -> Sigma:
    """The k largest entries, whatever their sign (eq. 7). Among equals the first is kept."""

    def sigma(z: np.ndarray) -> np.ndarray:
        kept = np.argsort(-z, axis=-1, kind="stable")[..., :k]
        out = np.zeros_like(z)
        np.put_along_axis(out, kept, np.take_along_axis(z, kept, axis=-1), axis=-1)
        return out

    return sigma


def topk_relu(k: int) -> Sigma:
    """TopK after ReLU; `topk_relu(1)` is example 3.5's Top-1∘ReLU."""
    largest = topk(k)
    return lambda z: largest(relu(z))


@dataclass(frozen=True)
class Problem:
    """Σ_d M_d ‖w_r^d - W_D σ(W_E w_p^d)‖² (eq. 11) as a function of W_E `(F, P)` and W_D `(R, F)`."""

    W_p: np.ndarray
    """Features where the dictionary reads, `(P, N)`."""
    W_r: np.ndarray
    """Features where it writes, `(R, N)`."""
    weights: np.ndarray
    """M_d = Pr(only d is on) · E[x_d² | d is on], `(N,)`."""
    sigma: Sigma

    def latents(self, W_E: np.ndarray) -> np.ndarray:
        """σ(W_E w_p^d) for each feature d alone, `(N, F)`."""
        return self.sigma((W_E @ self.W_p).T)

    def errors(self, W_E: np.ndarray, W_D: np.ndarray) -> np.ndarray:
        """w_r^d - W_D σ(W_E w_p^d), `(N, R)`."""
        return np.asarray(self.W_r.T - self.latents(W_E) @ W_D.T)

    def loss(self, W_E: np.ndarray, W_D: np.ndarray) -> float:
        """Eq. 11."""
        return float(self.weights @ (self.errors(W_E, W_D) ** 2).sum(axis=1))

    def gradients(self, W_E: np.ndarray, W_D: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gradients by W_E and W_D inside the region of W_E's activation pattern, where σ is a fixed mask."""
        latents_NF = self.latents(W_E)
        weighted_NR = -2 * self.weights[:, None] * self.errors(W_E, W_D)
        return (weighted_NR @ W_D * (latents_NF != 0)).T @ self.W_p.T, weighted_NR.T @ latents_NF


def activation_pattern(W_E: np.ndarray, W_p: np.ndarray, sigma: Sigma) -> np.ndarray:
    """Definition 3.1: whether latent i is on when feature d appears alone, bool `(F, N)`; row i is the set F_i."""
    return np.asarray(sigma((W_E @ W_p).T).T != 0)


def sets(pattern_FN: np.ndarray) -> tuple[frozenset[int], ...]:
    """The pattern as F_1, F_2, …: each latent's set of features."""
    return tuple(frozenset(np.flatnonzero(on_N).tolist()) for on_N in pattern_FN)


def from_sets(*features: set[int], of: int) -> np.ndarray:
    """The pattern, bool `(F, N)`, with these sets of the features 0 to `of` - 1."""
    return np.array([[d in each for d in range(of)] for each in features])


def dead(pattern_FN: np.ndarray) -> np.ndarray:
    """Latents that no feature switches on, bool `(F,)`."""
    return np.asarray(~pattern_FN.any(axis=1))


def polysemantic(pattern_FN: np.ndarray) -> np.ndarray:
    """Latents that two features or more switch on, bool `(F,)`."""
    return np.asarray(pattern_FN.sum(axis=1) >= 2)
