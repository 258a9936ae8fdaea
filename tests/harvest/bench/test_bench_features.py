import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harvest.bench.features import feature_matrix, welch_bound
from harvest.errors import UserError


def largest_product(w_DN: np.ndarray) -> float:
    columns = list(w_DN.astype(np.float64).T)
    return max(float(a @ b) for i, a in enumerate(columns) for b in columns[:i])


def test_welch_bound_is_reached_by_the_simplex_and_by_mercedes_benz_and_not_beaten_by_random_vectors() -> None:
    angles = 2 * np.pi * np.arange(3) / 3
    mercedes_DN = np.array([np.cos(angles), np.sin(angles)])
    assert np.abs(mercedes_DN.T @ mercedes_DN - np.eye(3)).max() == pytest.approx(welch_bound(3, 2))
    assert welch_bound(5, 4) == pytest.approx(1 / 4)  # a simplex's |inner product|
    assert welch_bound(4, 4) == 0
    w_ND = np.random.default_rng(0).standard_normal((12, 5))
    w_ND /= np.linalg.norm(w_ND, axis=1, keepdims=True)
    assert np.abs(w_ND @ w_ND.T - np.eye(12)).max() > welch_bound(12, 5)


@settings(derandomize=True, max_examples=25, deadline=None)
@given(
    width=st.integers(2, 40),
    ratio=st.floats(0.2, 1.8),
    slack=st.floats(1.05, 3),
    seed=st.integers(0, 2**32),
)
def test_columns_are_unit_and_no_two_exceed_the_limit(width: int, ratio: float, slack: float, seed: int) -> None:
    features = max(2, round(ratio * width))
    interference = min(0.9, slack * max(welch_bound(features, width), 0.02))
    w_DN = feature_matrix(features, width, interference, np.random.default_rng(seed))
    assert w_DN.shape == (width, features)
    assert w_DN.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(w_DN.astype(np.float64), axis=0), 1, atol=2e-7)
    assert largest_product(w_DN) <= interference
    np.testing.assert_array_equal(w_DN, feature_matrix(features, width, interference, np.random.default_rng(seed)))


@pytest.mark.parametrize(("features", "interference"), [(1000, 0.1), (1000, 0.05), (1000, 0.5), (1400, 0.1)])
def test_the_papers_sizes_take_seconds(features: int, interference: float) -> None:
    start = time.perf_counter()
    w_DN = feature_matrix(features, 768, interference, np.random.default_rng(0)).astype(np.float64)
    assert time.perf_counter() - start < 20
    assert (w_DN.T @ w_DN - 2 * np.eye(features)).max() <= interference


def test_features_stay_random_where_the_limit_is_loose() -> None:
    w_DN = feature_matrix(50, 40, 0.95, np.random.default_rng(3))
    gaussian_ND = np.random.default_rng(3).standard_normal((50, 40))
    np.testing.assert_allclose(w_DN.T, gaussian_ND / np.linalg.norm(gaussian_ND, axis=1, keepdims=True), atol=1e-7)


def test_a_limit_that_is_not_reached_says_what_was() -> None:
    # 64 directions in 4 dimensions: at most 24 can keep inner products at a half (the kissing number).
    with pytest.raises(UserError, match=r"interference: 0.5: 64 features in width 4 .* reached 0\.\d+ .*Welch"):
        feature_matrix(64, 4, 0.5, np.random.default_rng(0))
