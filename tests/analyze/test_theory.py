import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analyze.theory import bounds, minima
from analyze.theory.page import theory_page, unit_columns
from analyze.theory.problem import (
    Problem,
    Sigma,
    activation_pattern,
    dead,
    from_sets,
    jumprelu,
    polysemantic,
    relu,
    sets,
    topk,
    topk_relu,
)

few = settings(derandomize=True, max_examples=25, deadline=None)
seeds = st.integers(0, 2**32)
sigmas = st.sampled_from([relu, topk(2), topk_relu(1), topk_relu(3), jumprelu(0.1)])
homogeneous = st.sampled_from([relu, topk(2), topk_relu(1), topk_relu(3)])


def random_problem(rng: np.random.Generator, sigma: Sigma, features: int = 5, width: int = 4) -> Problem:
    W_p, W_r = unit_columns(rng, width, features), unit_columns(rng, width + 1, features)
    return Problem(W_p, W_r, rng.uniform(0.1, 1, features), sigma)


def random_dictionary(rng: np.random.Generator, problem: Problem, latents: int = 6) -> tuple[np.ndarray, np.ndarray]:
    return (
        rng.standard_normal((latents, problem.W_p.shape[0])),
        rng.standard_normal((problem.W_r.shape[0], latents)),
    )


@few
@given(seeds, sigmas)
def test_every_sigma_keeps_or_drops(seed: int, sigma: Sigma) -> None:
    z = np.random.default_rng(seed).standard_normal((7, 5))
    out = sigma(z)
    assert ((out == 0) | (out == z)).all()
    for row, kept in zip(z, topk(2)(z), strict=True):
        assert sorted(kept[kept != 0]) == sorted(row)[-2:]


@few
@given(seeds, sigmas)
def test_gradients_are_those_of_the_loss(seed: int, sigma: Sigma) -> None:
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, sigma)
    W_E, W_D = random_dictionary(rng, problem)
    by_encoder, by_decoder = problem.gradients(W_E, W_D)
    d_E, d_D = random_dictionary(rng, problem)
    d_E = (bounds.neighbour(problem, W_E, d_E) - W_E) / 2
    scale = 1e-4
    slope_E = (problem.loss(W_E + scale * d_E, W_D) - problem.loss(W_E - scale * d_E, W_D)) / (2 * scale)
    slope_D = (problem.loss(W_E, W_D + scale * d_D) - problem.loss(W_E, W_D - scale * d_D)) / (2 * scale)
    assert slope_E == pytest.approx((by_encoder * d_E).sum(), rel=1e-5, abs=1e-7)
    assert slope_D == pytest.approx((by_decoder * d_D).sum(), rel=1e-5, abs=1e-7)


@few
@given(seeds, homogeneous, st.floats(0.01, 1))
def test_3_1_the_loss_is_near_the_approximate_loss(seed: int, sigma: Sigma, share: float) -> None:
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, sigma, features=6)
    W_E, W_D = random_dictionary(rng, problem)
    density_N, magnitude_N = rng.uniform(0, share / 6, 6), rng.uniform(0.5, 2, 6)
    found = bounds.approximation(W_E, W_D, problem.W_p, problem.W_r, sigma, density_N, magnitude_N)
    assert abs(found.loss - found.approximate_loss) <= found.bound * (1 + 1e-12)
    # What eq. 11 leaves out is a sum of squares: it never exceeds the loss.
    assert 0 <= found.approximate_loss <= found.loss


def test_3_1_the_enumerated_loss_is_the_expectation() -> None:
    rng = np.random.default_rng(0)
    problem = random_problem(rng, relu, features=4)
    W_E, W_D = random_dictionary(rng, problem)
    density_N, magnitude_N = np.array([0.25, 0.1, 0.2, 0.05]), np.array([1.0, 2.0, 0.5, 1.5])
    x_BN = (rng.random((400_000, 4)) < density_N) * magnitude_N
    error_B = ((x_BN @ problem.W_r.T - relu(x_BN @ problem.W_p.T @ W_E.T) @ W_D.T) ** 2).sum(axis=1)
    found = bounds.approximation(W_E, W_D, problem.W_p, problem.W_r, relu, density_N, magnitude_N)
    assert found.loss == pytest.approx(error_B.mean(), abs=5 * error_B.std() / 400_000**0.5)


@few
@given(seeds, sigmas, st.floats(0.05, 0.95))
def test_3_2_the_loss_is_convex_in_each_matrix(seed: int, sigma: Sigma, mix: float) -> None:
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, sigma)
    (W_E, W_D), (direction, other_D) = random_dictionary(rng, problem), random_dictionary(rng, problem)
    other_E = bounds.neighbour(problem, W_E, direction)
    between = (1 - mix) * W_E + mix * other_E
    np.testing.assert_array_equal(problem.latents(between) != 0, problem.latents(W_E) != 0)  # the region is convex
    assert bounds.convexity_gap(lambda D: problem.loss(W_E, D), W_D, other_D, mix) >= -1e-9
    assert bounds.convexity_gap(lambda E: problem.loss(E, W_D), W_E, other_E, mix) >= -1e-9


@few
@given(seeds, st.sampled_from([relu, topk_relu(1), topk_relu(3), jumprelu(0.1)]), st.integers(2, 12))
def test_3_3_the_features_themselves_are_a_near_solution(seed: int, sigma: Sigma, width: int) -> None:
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, sigma, features=6, width=width)
    W_E, W_D = bounds.transposed_features(problem.W_p, problem.W_r, latents=9)
    assert (W_E.shape, W_D.shape) == ((9, width), (width + 1, 9))
    assert problem.loss(W_E, W_D) <= bounds.interference_bound(problem) + 1e-12


@few
@given(seeds, sigmas)
def test_3_4_zero_loss_is_exactly_every_feature_rebuilt_alone(seed: int, sigma: Sigma) -> None:
    rng = np.random.default_rng(seed)
    drawn = random_problem(rng, sigma)
    W_E, W_D = random_dictionary(rng, drawn)
    rebuilt = Problem(drawn.W_p, W_D @ drawn.latents(W_E).T, drawn.weights, sigma)
    assert rebuilt.loss(W_E, W_D) == pytest.approx(0, abs=1e-20)
    shift = np.zeros_like(rebuilt.W_r)
    shift[0, 2] = 0.5
    off_by_one = Problem(drawn.W_p, rebuilt.W_r + shift, drawn.weights, sigma)
    assert off_by_one.loss(W_E, W_D) == pytest.approx(drawn.weights[2] * 0.25)


@few
@given(seeds)
def test_3_4_more_latents_than_features_leave_the_decoder_free(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, relu)
    W_E, W_D = random_dictionary(rng, problem, latents=7)
    latents_NF = problem.latents(W_E)
    free_FF = np.eye(7) - np.linalg.pinv(latents_NF) @ latents_NF
    assert bounds.decoder_freedom(problem, W_E) == 5 * round(np.trace(free_FF)) >= 5 * 2
    moved = W_D + rng.standard_normal(W_D.shape) @ free_FF
    assert np.abs(moved - W_D).max() > 0.01
    assert problem.loss(W_E, moved) == pytest.approx(problem.loss(W_E, W_D))


def test_figure_4_training_reaches_zero_loss_and_recovers_nothing() -> None:
    problem = bounds.four_in_two_dimensions()
    run = bounds.train(problem, latents=4, seed=7)
    assert run.loss < 1e-18
    assert run.recovered == 0
    assert max(run.encoder_cosine.max(), run.decoder_cosine.max()) < 0.95
    np.testing.assert_allclose(problem.latents(run.W_E) @ run.W_D.T, problem.W_r.T, atol=1e-9)
    for feature, best in zip(problem.W_r.T, run.decoder_cosine, strict=True):
        by_hand = max(abs(float(v @ feature)) / np.linalg.norm(v) for v in run.W_D.T)
        assert best == pytest.approx(by_hand)


def test_3_5_the_example() -> None:
    problem, W_E, W_D = minima.example_3_5()
    assert problem.loss(W_E, W_D) == 1
    assert all((gradient == 0).all() for gradient in problem.gradients(W_E, W_D))
    rng = np.random.default_rng(0)
    for _ in range(100):  # inside the region: small moves keep the pattern, and moves of one matrix never gain
        near = W_E + rng.uniform(-0.4, 0.4, (2, 2))
        np.testing.assert_array_equal(problem.latents(near) != 0, problem.latents(W_E) != 0)
        assert problem.loss(near, W_D) >= 1
        assert problem.loss(W_E, W_D + rng.standard_normal((2, 2))) >= 1


def test_definition_3_1() -> None:
    W_E = np.array([[1.0, 1.0, -1.0], [0.0, 0.0, 1.0], [-1.0, -1.0, -1.0]])
    pattern = activation_pattern(W_E, np.eye(3), relu)
    assert sets(pattern) == (frozenset({0, 1}), frozenset({2}), frozenset())
    np.testing.assert_array_equal(pattern, from_sets({0, 1}, {2}, set(), of=3))
    assert polysemantic(pattern).tolist() == [True, False, False]
    assert dead(pattern).tolist() == [False, False, True]


def random_partition(rng: np.random.Generator, features: int) -> np.ndarray:
    """A partition whose first set has at least two features."""
    labels = np.append([0, 0], rng.integers(0, 3, features - 2))
    return np.array([labels == label for label in np.unique(labels)])


@few
@given(seeds, st.integers(3, 6), st.sampled_from([relu, topk_relu(1)]))
def test_3_6_a_polysemantic_partition_has_a_spurious_partial_minimum(seed: int, features: int, sigma: Sigma) -> None:
    rng = np.random.default_rng(seed)
    W_p, W_r = unit_columns(rng, features + 1, features), np.abs(unit_columns(rng, features + 2, features))
    problem = Problem(W_p, W_r, rng.uniform(0.2, 1, features), sigma)
    pattern_FN = random_partition(rng, features)
    W_E, W_D = minima.spurious_minimum(problem, pattern_FN)
    np.testing.assert_array_equal(activation_pattern(W_E, W_p, sigma), pattern_FN)
    loss = problem.loss(W_E, W_D)
    assert loss > 1e-3
    for gradient in problem.gradients(W_E, W_D):
        np.testing.assert_allclose(gradient, 0, atol=1e-8)
    for _ in range(10):
        near = bounds.neighbour(problem, W_E, rng.standard_normal(W_E.shape))
        assert problem.loss(near, W_D) >= loss - 1e-9
        assert problem.loss(W_E, W_D + rng.standard_normal(W_D.shape)) >= loss - 1e-9


def test_3_6_one_latent_for_everything_and_a_minimum_on_the_boundary() -> None:
    problem = Problem(np.eye(3), np.eye(3), np.ones(3), relu)
    W_E, W_D = minima.spurious_minimum(problem, from_sets({0, 1, 2}, of=3))
    assert problem.loss(W_E, W_D) == pytest.approx(2)  # a rank-one fit of the identity
    opposite = Problem(np.eye(2), np.array([[1.0, -1.0], [0.0, 0.1]]), np.ones(2), relu)
    with pytest.raises(ValueError, match=r"latent 0 with features \[0, 1\].*boundary"):
        minima.spurious_minimum(opposite, from_sets({0, 1}, of=2))


@few
@given(seeds, st.integers(3, 6))
def test_3_8_a_child_can_leave_its_parent(seed: int, features: int) -> None:
    rng = np.random.default_rng(seed)
    W_p = unit_columns(rng, features, features)
    pattern_FN = random_partition(rng, features)
    child = int(rng.choice(np.flatnonzero(pattern_FN[0])))
    absorbed_FN = minima.absorb(pattern_FN, parent=0, child=child)
    assert sets(absorbed_FN)[0] == sets(pattern_FN)[0] - {child}
    assert {child} in sets(absorbed_FN)
    assert sets(absorbed_FN)[1 : len(pattern_FN)] == sets(pattern_FN)[1:]
    for wanted_FN in (pattern_FN, absorbed_FN):
        W_E = minima.realize(wanted_FN, W_p)
        assert W_E is not None
        np.testing.assert_array_equal(activation_pattern(W_E, W_p, relu), wanted_FN)


def test_3_8_needs_a_child_outside_its_siblings_cone() -> None:
    angles = np.radians([-40, 0, 40])
    W_p = np.array([np.cos(angles), np.sin(angles)])
    together = from_sets({0, 1, 2}, of=3)
    assert minima.realize(together, W_p) is not None
    assert minima.realize(minima.absorb(together, parent=0, child=1), W_p) is None


@few
@given(seeds)
def test_what_an_encoder_does_is_found_realizable(seed: int) -> None:
    rng = np.random.default_rng(seed)
    W_p, W_E = unit_columns(rng, 3, 6), rng.standard_normal((5, 3))
    pattern_FN = activation_pattern(W_E, W_p, relu)
    found = minima.realize(pattern_FN, W_p)
    assert found is not None
    np.testing.assert_array_equal(activation_pattern(found, W_p, relu), pattern_FN)


def test_the_page_holds_what_the_theorems_say() -> None:
    page = json.loads(json.dumps(theory_page(seed=1)))
    assert page["theorem_3_1"]["difference"] <= page["theorem_3_1"]["bound"]
    assert page["theorem_3_3"]["loss"] <= page["theorem_3_3"]["bound"]
    assert min(page["theorem_3_2"]["least_gap_decoder"], page["theorem_3_2"]["least_gap_encoder"]) >= -1e-9
    assert page["theorem_3_2"]["gap_both"] < 0
    assert page["theorem_3_4"]["loss"] < 1e-18
    assert page["theorem_3_4"]["recovered"] == 0
    assert page["example_3_5"]["loss"] == 1
    for minimum in (page["theorem_3_6"], page["theorem_3_6"]["figure_4"]):
        assert minimum["gradient_norm"] < 1e-9
        assert minimum["loss"] > 0
    independent = page["theorem_3_8"]["five_features_in_6_dimensions"]
    assert independent["still_realizable"] == independent["realizable"] > 0
    assert all(part["statement"] for part in page.values())
