"""The theorems on one seeded instance each, and the bench's own picture, as numbers for the report."""

from functools import partial
from typing import Any

import numpy as np

from analyze.theory import bounds, minima
from analyze.theory.problem import Problem, from_sets, polysemantic, relu, sets, topk_relu
from harvest.bench.config import BenchSpec
from harvest.bench.features import feature_matrix
from harvest.bench.source import BenchSource

ATTEMPTS = 40
"""Random starts for Figure 4."""
EXAMPLE = "A polysemantic latent at which both gradients vanish, inside its region of W_E, and the loss is 1."


def theory_page(seed: int = 0) -> dict[str, Any]:
    """Every theorem's measured quantities, as JSON: theorem -> `statement` and its numbers; likewise `figure_9`.

    Takes a few seconds.
    """
    return {
        "theorem_3_1": _approximate_loss(np.random.default_rng(seed)),
        "theorem_3_2": _biconvexity(np.random.default_rng(seed)),
        "theorem_3_3": _interference(np.random.default_rng(seed)),
        "theorem_3_4": _zero_loss(),
        "example_3_5": _spurious(*minima.example_3_5()) | {"statement": EXAMPLE},
        "theorem_3_6": _partial_minima(np.random.default_rng(seed)),
        "theorem_3_8": _absorption(np.random.default_rng(seed)),
        "figure_9": _bench(seed),
    }


def unit_columns(rng: np.random.Generator, width: int, features: int) -> np.ndarray:
    """Gaussian columns, normalised (eq. 27), `(width, features)` float64."""
    W = rng.standard_normal((width, features))
    unit: np.ndarray = W / np.linalg.norm(W, axis=0)
    return unit


def _approximate_loss(rng: np.random.Generator) -> dict[str, Any]:
    features, width, latents, sparsity = 10, 8, 16, 0.99
    W_p = unit_columns(rng, width, features)
    W_E, W_D = rng.standard_normal((latents, width)), rng.standard_normal((width, latents)) / latents
    density_N, magnitude_N = np.full(features, 1 - sparsity), rng.uniform(0.5, 1.5, features)
    measured = bounds.approximation(W_E, W_D, W_p, W_p, topk_relu(4), density_N, magnitude_N)
    return {
        "statement": "With 1-S <= 1/n, the loss is within n² C (1-S)² of the approximate loss, which counts one "
        "feature at a time.",
        "features": features,
        "sparsity": sparsity,
        "loss": measured.loss,
        "approximate_loss": measured.approximate_loss,
        "difference": abs(measured.loss - measured.approximate_loss),
        "bound": measured.bound,
    }


def _biconvexity(rng: np.random.Generator, pairs: int = 100) -> dict[str, Any]:
    problem = Problem(unit_columns(rng, 6, 8), unit_columns(rng, 5, 8), rng.uniform(0.1, 1, 8), relu)
    encoder, decoder = [], []
    for _ in range(pairs):
        W_E, W_D, other = rng.standard_normal((10, 6)), rng.standard_normal((5, 10)), rng.standard_normal((5, 10))
        moved = bounds.neighbour(problem, W_E, rng.standard_normal((10, 6)))
        decoder.append(bounds.convexity_gap(partial(problem.loss, W_E), W_D, other))
        encoder.append(bounds.convexity_gap(partial(problem.loss, W_D=W_D), W_E, moved))
    # (cW_E, W_D/c) has the loss of (W_E, W_D), but not the points between them: the loss is not convex in both.
    scales = np.array([0.5, 2.0])
    W_E, W_D = bounds.transposed_features(np.eye(3), np.eye(3), 3)
    identity = Problem(np.eye(3), np.eye(3), np.ones(3), relu)
    joint = bounds.convexity_gap(lambda c: identity.loss(c[0] * W_E, c[1] * W_D), scales, scales[::-1])
    return {
        "statement": "With the activation pattern fixed, the loss is convex in W_D, and in W_E, though not in both.",
        "pairs": pairs,
        "least_gap_decoder": min(decoder),
        "least_gap_encoder": min(encoder),
        "gap_both": joint,
    }


def _interference(rng: np.random.Generator) -> dict[str, Any]:
    features, width, limit = 200, 128, 0.1
    W_p = feature_matrix(features, width, limit, rng).astype(np.float64)
    problem = Problem(W_p, W_p, np.full(features, 1 / features), relu)
    W_E, W_D = bounds.transposed_features(W_p, W_p, latents=2 * features)
    return {
        "statement": "W_D = [W_r, 0], W_E = [W_pᵀ; 0] has an approximate loss of at most n² M² Σ M_d.",
        "features": features,
        "width": width,
        "interference": bounds.interference(W_p),
        "loss": problem.loss(W_E, W_D),
        "bound": bounds.interference_bound(problem),
    }


def _zero_loss() -> dict[str, Any]:
    problem = bounds.four_in_two_dimensions()
    runs = [bounds.train(problem, latents=4, seed=seed) for seed in range(ATTEMPTS)]
    solved = [run for run in runs if run.loss < 1e-18]
    shown = min(solved, key=lambda run: (run.recovered, run.loss))
    return {
        "statement": "Zero loss needs only w_r^d = W_D σ(W_E w_p^d) for each d: some solutions recover no feature.",
        "starts": len(runs),
        "zero_loss": len(solved),
        "recovering_all": sum(run.recovered == 4 for run in solved),
        "recovering_none": sum(run.recovered == 0 for run in solved),
        "loss": shown.loss,
        "seed": shown.seed,
        "recovered": shown.recovered,
        "encoder_cosine": shown.encoder_cosine.tolist(),
        "decoder_cosine": shown.decoder_cosine.tolist(),
        "features": problem.W_p.T.tolist(),
        "encoder": shown.W_E.tolist(),
        "decoder": shown.W_D.T.tolist(),
        "decoder_freedom_with_twice_the_latents": bounds.decoder_freedom(problem, np.vstack([shown.W_E] * 2)),
    }


def _spurious(problem: Problem, W_E: np.ndarray, W_D: np.ndarray) -> dict[str, Any]:
    by_encoder, by_decoder = problem.gradients(W_E, W_D)
    pattern_FN = (problem.latents(W_E) != 0).T
    return {
        "pattern": [sorted(features) for features in sets(pattern_FN)],
        "polysemantic": int(polysemantic(pattern_FN).sum()),
        "loss": problem.loss(W_E, W_D),
        "gradient_norm": float(np.hypot(np.linalg.norm(by_encoder), np.linalg.norm(by_decoder))),
    }


def _partial_minima(rng: np.random.Generator) -> dict[str, Any]:
    W = np.abs(unit_columns(rng, 8, 6))
    problem = Problem(W, W, rng.uniform(0.5, 1, 6), relu)
    four = bounds.four_in_two_dimensions()
    return {
        "statement": "Every realizable polysemantic pattern that partitions the features has a partial minimum with "
        "positive loss.",
        **_spurious(problem, *minima.spurious_minimum(problem, from_sets({0, 1, 2}, {3, 4}, {5}, of=6))),
        "figure_4": _spurious(four, *minima.spurious_minimum(four, from_sets({0, 1}, {2, 3}, of=4))),
    }


def _absorption(rng: np.random.Generator, instances: int = 50) -> dict[str, Any]:
    pattern_FN = from_sets({0, 1, 2}, {3}, {4}, of=5)
    absorbed_FN = minima.absorb(pattern_FN, parent=0, child=1)
    counts = {}
    for width in (6, 4):
        drawn = [unit_columns(rng, width, 5) for _ in range(instances)]
        realizable = [W_p for W_p in drawn if minima.realize(pattern_FN, W_p) is not None]
        kept = sum(minima.realize(absorbed_FN, W_p) is not None for W_p in realizable)
        counts[f"five_features_in_{width}_dimensions"] = {"realizable": len(realizable), "still_realizable": kept}
    return {
        "statement": "If a pattern is realizable, so is the one in which a child has left its parent's set "
        "(absorption): always where the features are independent, not for every crowded matrix.",
        "pattern": [sorted(features) for features in sets(pattern_FN)],
        "absorbed": [sorted(features) for features in sets(absorbed_FN)],
        **counts,
    }


def _bench(seed: int) -> dict[str, Any]:
    """Figure 9: a bench that can be drawn. A row's `strongest` feature has its largest coefficient, -1 where all are 0.

    The limit on interference lies just above the Welch bound, 1/3.
    """
    spec = BenchSpec(features=4, sites={"x": 3}, rows=400, sparsity=0.75, interference=0.34, seed=seed)
    source = BenchSource(spec)
    W = source.features_DN["x"]
    coefficients_BN = source.read_columns(0, spec.rows)["truth/coefficients"]
    strongest_B = np.where(coefficients_BN.any(1), coefficients_BN.argmax(1), -1)
    return {
        "statement": "Every row of the bench is a sum of few features, x_p = W_p x with x >= 0 (eq. 32).",
        "sparsity": spec.sparsity,
        "limit": spec.interference,
        "interference": bounds.interference(W),
        "features": W.T.tolist(),
        "rows": [[float(f"{x:.4g}") for x in row] for row in source.read_sites(0, spec.rows)["x"].tolist()],
        "strongest": strongest_B.tolist(),
    }
