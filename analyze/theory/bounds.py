"""Theorems 3.1 to 3.4: the approximate loss, its biconvexity, and the two solutions that bound it from above."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from analyze.theory.problem import Problem, Sigma, relu


@dataclass(frozen=True)
class Approximation:
    """Theorem 3.1 on one instance: |loss - approximate_loss| <= bound."""

    loss: float
    """E ‖x_r - W_D σ(W_E x_p)‖² (eq. 3), summed over all 2^N sets of features that can be on."""
    approximate_loss: float
    """Eq. 11, which counts only the rows with a single feature on."""
    bound: float
    """n² C (1-S)², with C the largest squared error of any row and 1-S the largest density."""


def approximation(
    W_E: np.ndarray,
    W_D: np.ndarray,
    W_p: np.ndarray,
    W_r: np.ndarray,
    sigma: Sigma,
    density_N: np.ndarray,
    magnitude_N: np.ndarray,
) -> Approximation:
    """Theorem 3.1 for features that are on independently, each with its density and one magnitude: no sampling.

    Eq. 11 takes M_d out of the norm, so σ must be positively homogeneous: ReLU and TopK are, JumpReLU is not.
    """
    features = len(density_N)
    assert density_N.max() <= 1 / features, "theorem 3.1 needs 1 - S <= 1/n"
    on_BN = np.array(list(itertools.product([False, True], repeat=features)))
    probability_B = np.where(on_BN, density_N, 1 - density_N).prod(axis=1)
    x_BN = on_BN * magnitude_N
    error_B = ((x_BN @ W_r.T - sigma(x_BN @ W_p.T @ W_E.T) @ W_D.T) ** 2).sum(axis=1)
    alone_N = density_N * np.array([np.delete(1 - density_N, d).prod() for d in range(features)])
    return Approximation(
        loss=float(probability_B @ error_B),
        approximate_loss=Problem(W_p, W_r, alone_N * magnitude_N**2, sigma).loss(W_E, W_D),
        bound=float(features**2 * error_B.max() * density_N.max() ** 2),
    )


def convexity_gap(function: Callable[[np.ndarray], float], a: np.ndarray, b: np.ndarray, mix: float = 0.5) -> float:
    """(1-t) f(a) + t f(b) - f((1-t) a + t b) at t = `mix`: never negative for a convex function (theorem 3.2)."""
    return (1 - mix) * function(a) + mix * function(b) - function((1 - mix) * a + mix * b)


def neighbour(problem: Problem, W_E: np.ndarray, direction_FP: np.ndarray) -> np.ndarray:
    """W_E moved along `direction_FP`, halving the way back until the activation pattern is what it was."""
    pattern_NF = problem.latents(W_E) != 0
    moved_FP = W_E + direction_FP
    while not np.array_equal(problem.latents(moved_FP) != 0, pattern_NF):
        moved_FP = (W_E + moved_FP) / 2
    return np.asarray(moved_FP)


def transposed_features(W_p: np.ndarray, W_r: np.ndarray, latents: int) -> tuple[np.ndarray, np.ndarray]:
    """Theorem 3.3's W_E = [W_pᵀ; 0] and W_D = [W_r, 0] with `latents` >= N."""
    spare = latents - W_p.shape[1]
    return np.pad(W_p.T, ((0, spare), (0, 0))), np.pad(W_r, ((0, 0), (0, spare)))


def interference(W_p: np.ndarray) -> float:
    """M = max_{i≠j} <w_p^i, w_p^j>."""
    return float((W_p.T @ W_p)[~np.eye(W_p.shape[1], dtype=bool)].max())


def interference_bound(problem: Problem) -> float:
    """n² M² Σ M_d: at most this is the loss of `transposed_features` (theorem 3.3).

    The bound needs a σ that keeps each feature's own latent and no negative one: ReLU, JumpReLU with a threshold in
    [0, 1), or TopK of a ReLU. TopK alone may keep negative products, which M does not limit.
    """
    return float(problem.W_p.shape[1] ** 2 * interference(problem.W_p) ** 2 * problem.weights.sum())


def decoder_freedom(problem: Problem, W_E: np.ndarray) -> int:
    """Dimension of the set of W_D that give the same loss: R for each latent beyond the rank of the latents' values.

    The rank is at most N, so that with F > N theorem 3.4's condition for zero loss leaves W_D undetermined.
    """
    undetermined = len(W_E) - int(np.linalg.matrix_rank(problem.latents(W_E)))
    return len(problem.W_r) * undetermined


@dataclass(frozen=True)
class Trained:
    """A dictionary found by gradient descent from a random start."""

    W_E: np.ndarray
    W_D: np.ndarray
    loss: float
    encoder_cosine: np.ndarray
    """Each feature's largest |cosine| with a row of W_E, `(N,)`."""
    decoder_cosine: np.ndarray
    """Each feature's largest |cosine| with a column of W_D, `(N,)`."""
    seed: int

    @property
    def recovered(self) -> int:
        """How many features some row of W_E or column of W_D matches to |cosine| > 0.95."""
        return int((np.maximum(self.encoder_cosine, self.decoder_cosine) > 0.95).sum())


def four_in_two_dimensions() -> Problem:
    """Figure 4's problem: a ReLU autoencoder of four features at right angles in two dimensions."""
    W = np.hstack([np.eye(2), -np.eye(2)])
    return Problem(W, W, np.ones(4), relu)


def train(problem: Problem, latents: int, seed: int, rate: float = 0.05, steps: int = 4000) -> Trained:
    """Plain gradient descent on W_E and W_D from a Gaussian start, until the loss is 1e-20 or the steps are used."""
    rng = np.random.default_rng(seed)
    W_E = rng.normal(0, 0.5, (latents, problem.W_p.shape[0]))
    W_D = rng.normal(0, 0.5, (problem.W_r.shape[0], latents))
    for _ in range(steps):
        by_encoder, by_decoder = problem.gradients(W_E, W_D)
        W_E, W_D = W_E - rate * by_encoder, W_D - rate * by_decoder
        if (loss := problem.loss(W_E, W_D)) < 1e-20:
            break
    return Trained(W_E, W_D, loss, _cosine(W_E.T, problem.W_p), _cosine(W_D, problem.W_r), seed)


def _cosine(learned: np.ndarray, true: np.ndarray) -> np.ndarray:
    """The largest |cosine| of each column of `true` with any column of `learned`."""
    unit = learned / np.maximum(np.linalg.norm(learned, axis=0), 1e-12)
    return np.asarray(np.abs(unit.T @ true).max(axis=0) / np.linalg.norm(true, axis=0))
