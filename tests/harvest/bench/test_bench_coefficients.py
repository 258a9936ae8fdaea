import numpy as np
import pytest
import scipy.sparse

from harvest.bench.coefficients import BLOCK, coefficient_block, frequencies, parents
from harvest.bench.config import BenchSpec


def draw(spec: BenchSpec, blocks: int = 40) -> np.ndarray:
    dense: np.ndarray = scipy.sparse.vstack([coefficient_block(spec, block) for block in range(blocks)]).toarray()
    return dense


def assert_frequencies(on_BN: np.ndarray, expected_N: np.ndarray) -> None:
    """Each feature's share of active rows lies within five standard errors of what was asked."""
    error_N = np.sqrt(expected_N * (1 - expected_N) / len(on_BN))
    np.testing.assert_array_less(np.abs(on_BN.mean(axis=0) - expected_N), 5 * error_N)


def test_features_are_on_independently_with_the_asked_density_and_magnitude() -> None:
    spec = BenchSpec(features=30, sparsity=0.9, magnitude_minimum=0.7, magnitude_scale=0.2)
    c_BN = draw(spec)
    assert_frequencies(c_BN > 0, np.full(30, 0.1))
    correlation_NN = np.corrcoef((c_BN > 0).T) - np.eye(30)
    assert np.abs(correlation_NN).max() < 5 / np.sqrt(len(c_BN))
    active = c_BN[c_BN > 0]
    assert active.min() >= np.float32(0.7)
    assert active.mean() == pytest.approx(0.9, abs=0.005)
    assert (active - 0.7).std() == pytest.approx(0.2, abs=0.005)  # an exponential's deviation is its mean


def test_a_block_depends_on_the_seed_and_its_number_only() -> None:
    spec = BenchSpec(features=20, sparsity=0.8)
    one, again = coefficient_block(spec, 7), coefficient_block(spec.model_copy(update={"rows": 5}), 7)
    assert one.shape == (BLOCK, 20)
    np.testing.assert_array_equal(one.toarray(), again.toarray())
    assert (one != coefficient_block(spec, 8)).nnz > 0
    assert (one != coefficient_block(spec.model_copy(update={"seed": 1}), 7)).nnz > 0


def test_a_parent_is_on_exactly_when_a_child_is_and_keeps_the_density() -> None:
    spec = BenchSpec.model_validate(
        {"features": 25, "sparsity": 0.9, "interference": 0.2, "hierarchy": {"parents": 4, "children": 3}}
    )
    parents_N, on_BN = parents(spec), draw(spec) > 0
    assert parents_N.dtype == np.int32
    assert sorted(np.bincount(parents_N[parents_N >= 0])) == [3, 3, 3, 3]
    for parent in range(4):
        np.testing.assert_array_equal(on_BN[:, parent], on_BN[:, parents_N == parent].any(axis=1))
    np.testing.assert_allclose(frequencies(spec)[parents_N < 0], 0.1)
    assert_frequencies(on_BN, frequencies(spec))


def test_groups_have_the_asked_correlation_and_everything_keeps_its_density() -> None:
    spec = BenchSpec.model_validate(
        {
            "features": 30,
            "sparsity": 0.9,
            "hierarchy": {"parents": 2, "children": 3},
            "correlation": {"groups": 3, "members": 4, "strength": 0.4},
        }
    )
    on_BN = draw(spec, blocks=100) > 0
    assert_frequencies(on_BN, frequencies(spec))
    correlation_NN = np.corrcoef(on_BN[:, 8:].T)
    expected_NN = np.eye(22)
    for group in range(3):
        expected_NN[4 * group : 4 * group + 4, 4 * group : 4 * group + 4] += 0.4 * (1 - np.eye(4))
    np.testing.assert_allclose(correlation_NN, expected_NN, atol=0.03)


@pytest.mark.parametrize(("exponent", "sparsity"), [(0.5, 0.99), (1.0, 0.99), (2.0, 0.95)])
def test_a_power_law_keeps_the_mean_density(exponent: float, sparsity: float) -> None:
    spec = BenchSpec(features=200, sparsity=sparsity, power_law=exponent)
    density_N = frequencies(spec)
    assert density_N.mean() == pytest.approx(1 - sparsity)
    assert density_N.max() <= 0.5
    tail = slice(int((density_N == 0.5).sum()), None)
    slope = np.polyfit(np.log(np.arange(1, 201))[tail], np.log(density_N)[tail], 1)[0]
    assert slope == pytest.approx(-exponent)
    assert_frequencies((draw(spec) > 0)[:, :20], density_N[:20])
