"""Example 3.5, theorem 3.6 and theorem 3.8: minima that recover nothing, and the pattern of feature absorption."""

import numpy as np
import scipy.optimize

from analyze.theory.problem import Problem, topk_relu


def example_3_5() -> tuple[Problem, np.ndarray, np.ndarray]:
    """Example 3.5's problem, W_E and W_D: both gradients vanish inside the region, and the loss is 1."""
    problem = Problem(W_p=np.eye(2), W_r=np.eye(2), weights=np.ones(2), sigma=topk_relu(1))
    return problem, np.array([[1.0, 1.0], [0.0, 0.0]]), np.array([[0.5, 0.0], [0.5, 0.0]])


def realize(pattern_FN: np.ndarray, W_p: np.ndarray) -> np.ndarray | None:
    """An encoder `(F, P)` whose ReLU has this activation pattern, or None where there is none.

    Row i is a half-space with F_i strictly inside and the other features outside: one linear programme a latent.
    """
    rows = [_separate(on_N, np.ones(len(on_N)), W_p, exactly=False) for on_N in pattern_FN]
    return None if any(row is None for row in rows) else np.array([row[0] for row in rows if row is not None])


def spurious_minimum(problem: Problem, pattern_FN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """W_E and W_D of a partial minimum with this pattern, which partitions the features (theorem 3.6).

    Each feature is held by one latent, so the loss splits into rank-one fits, Σ_{d∈F_i} M_d ‖w_r^d - s_d v_i‖². Both
    gradients vanish where v_i is the leading principal axis of F_i's features and s_d = <w_r^d, v_i> / ‖v_i‖²; W_E must
    then give <w_E^i, w_p^d> = s_d on F_i and be negative on the rest, which a linear programme decides. The loss is
    positive as soon as two features of one latent are not parallel.

    Raises:
        ValueError: the pattern has no such point inside its region; its partial minimum then lies on the boundary.
    """
    assert (pattern_FN.sum(axis=0) == 1).all(), "the pattern must partition the features"
    assert pattern_FN.any(axis=1).all(), "no set of a partition is empty"
    W_E, W_D = [], []
    for i, on_N in enumerate(pattern_FN):
        axis_R = _leading_axis(problem.W_r[:, on_N], problem.weights[on_N])
        values_N = problem.W_r.T @ axis_R / (axis_R @ axis_R)
        found = _separate(on_N, values_N, problem.W_p, exactly=True) if (values_N[on_N] > 0).all() else None
        if found is None or found[1] < 1e-6:
            raise ValueError(
                f"latent {i} with features {np.flatnonzero(on_N).tolist()}: its minimum is on the boundary"
            )
        W_E.append(found[0])
        W_D.append(axis_R)
    return np.array(W_E), np.array(W_D).T


def absorb(pattern_FN: np.ndarray, parent: int, child: int) -> np.ndarray:
    """Theorem 3.8's pattern of feature absorption: `child` leaves latent `parent`'s set for a latent of its own.

    The features are the children; a parent is on exactly when one of them is, so its latent's set is theirs. The
    theorem says that if the first pattern is realizable, so is this one. With ReLU and linearly independent features
    that holds always. With more features than dimensions it needs a condition: a child inside the cone of the siblings
    that stay cannot leave, as every half-space that holds them holds it as well. `realize` decides each case.
    """
    assert pattern_FN[parent, child]
    absorbed_FN = pattern_FN.copy()
    absorbed_FN[parent, child] = False
    own_N = np.arange(pattern_FN.shape[1]) == child
    if (pattern_FN == own_N).all(axis=1).any():  # the child has its latent already
        return absorbed_FN
    return np.vstack([absorbed_FN, own_N])


def _separate(
    on_N: np.ndarray, values_N: np.ndarray, W_p: np.ndarray, *, exactly: bool
) -> tuple[np.ndarray, float] | None:
    """A row u `(P,)` with <u, w_p^d> = values_d (or at least that) on the set and <= -t off it, and its largest t <= 1.

    A dead latent is the zero row.
    """
    width, features = W_p.shape
    if not on_N.any():
        return np.zeros(width), 0.0
    on = np.column_stack([W_p[:, on_N].T, np.zeros(on_N.sum())])
    off = np.column_stack([W_p[:, ~on_N].T, np.ones(features - on_N.sum())])
    equal = {"A_eq": on, "b_eq": values_N[on_N]} if exactly else {}
    at_most = off if exactly else np.vstack([off, -on])
    limits = np.zeros(len(off)) if exactly else np.concatenate([np.zeros(len(off)), -values_N[on_N]])
    maximise_t = np.append(np.zeros(width), -1.0)
    # Without limits the solver now and then ends undecided; a row beyond them would hold its features by a hair.
    bounds = [(-1e4, 1e4)] * width + [(0, 1)]
    solution = scipy.optimize.linprog(maximise_t, A_ub=at_most, b_ub=limits, bounds=bounds, **equal)
    assert solution.status in (0, 2), solution.message  # solved, or infeasible
    return (solution.x[:-1], float(solution.x[-1])) if solution.status == 0 else None


def _leading_axis(w_RN: np.ndarray, weights_N: np.ndarray) -> np.ndarray:
    """The leading principal axis nearest to the weighted mean, so that no feature is favoured where several lead."""
    scaled_RN = w_RN * np.sqrt(weights_N)
    eigenvalues, eigenvectors = np.linalg.eigh(scaled_RN.T @ scaled_RN)
    leading = eigenvectors[:, eigenvalues > eigenvalues[-1] * (1 - 1e-9)]
    axis_R: np.ndarray = scaled_RN @ (leading @ (leading.T @ np.sqrt(weights_N)))
    return axis_R
