import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harvest.bench.coefficients import BLOCK
from harvest.bench.config import BenchSpec
from harvest.bench.source import BenchSource
from harvest.config import check_spec
from harvest.errors import UserError
from harvest.source import Source

SPEC = BenchSpec.model_validate(
    {"features": 40, "sites": {"p": 32, "r": 36}, "rows": 3 * BLOCK + 100, "sparsity": 0.9, "interference": 0.3}
)
SOURCE: Source = BenchSource(SPEC)
WHOLE = SOURCE.read_sites(0, SPEC.rows)
TRUTH_BN = SOURCE.read_columns(0, SPEC.rows)["truth/coefficients"]


@settings(derandomize=True, max_examples=30, deadline=None)
@given(st.integers(0, SPEC.rows - 1), st.integers(1, SPEC.rows))
def test_any_range_has_the_bytes_of_the_whole(start: int, length: int) -> None:
    stop = min(start + length, SPEC.rows)
    part = BenchSource(SPEC).read_sites(start, stop)
    assert {site: tuple(x_BD.shape) for site, x_BD in part.items()} == {
        site: (stop - start, width) for site, width in SPEC.sites.items()
    }
    for site, x_BD in part.items():
        assert x_BD.numpy().tobytes() == WHOLE[site][start:stop].numpy().tobytes()
    assert SOURCE.read_columns(start, stop)["truth/coefficients"].tobytes() == TRUTH_BN[start:stop].tobytes()


def test_rows_are_the_sites_own_features_times_the_shared_coefficients() -> None:
    for site, width in SPEC.sites.items():
        features_DN = SOURCE.tables[f"truth/features/{site}"]
        assert features_DN.shape == (width, 40)
        expected_BD = TRUTH_BN.astype(np.float64) @ features_DN.astype(np.float64).T
        np.testing.assert_allclose(WHOLE[site].numpy(), expected_BD, atol=5e-6)
    assert np.linalg.matrix_rank(np.vstack([SOURCE.tables[f"truth/features/{site}"] for site in "pr"])) == 40


def test_another_site_or_more_rows_leave_the_rest_as_it_was() -> None:
    alone = BenchSource(SPEC.model_copy(update={"sites": {"r": 36}, "rows": 10**9}))
    np.testing.assert_array_equal(alone.read_sites(0, 50)["r"], WHOLE["r"][:50])
    assert alone.read_sites(10**9 - 3, 10**9)["r"].shape == (3, 36)


def test_what_a_store_needs_to_know() -> None:
    assert SOURCE.dtype == str(WHOLE["p"].dtype).removeprefix("torch.") == "float32"
    assert SOURCE.widths == {"p": 32, "r": 36}
    assert SOURCE.columns["truth/coefficients"].width == 40
    assert TRUTH_BN.dtype == SOURCE.columns["truth/coefficients"].dtype
    assert set(SOURCE.tables) == {"truth/features/p", "truth/features/r", "truth/frequencies"}
    assert SPEC.model_validate(json.loads(json.dumps(SOURCE.facts))["bench"]) == SPEC
    family = SPEC.model_validate(SPEC.model_dump() | {"hierarchy": {"parents": 2, "children": 2}})
    np.testing.assert_array_equal(BenchSource(family).tables["truth/parents"][:7], [-1, -1, 0, 0, 1, 1, -1])


def test_the_defaults_are_the_papers() -> None:
    spec = BenchSpec()
    assert (spec.features, spec.sites, spec.rows, spec.sparsity, spec.interference) == (
        *(1000, {"x": 768}, 100_000),
        *(0.99, 0.1),
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"interference": 0.01}, "interference: 0.01: 1000 .* width 768 .* Welch bound is 0.0174"),
        ({"features": 40, "sites": {"p": 24}}, "interference: 0.1: 40 .* width 24 .* Welch bound is 0.1307"),
        ({"features": 11, "hierarchy": {"parents": 3, "children": 3}}, "hierarchy: .* need 12 features, .* has 11"),
        (
            {
                "features": 15,
                "hierarchy": {"parents": 3, "children": 3},
                "correlation": {"groups": 2, "members": 2, "strength": 0.5},
            },
            "correlation: .* need 16 features, .* has 15",
        ),
        ({"sparsity": 0.3}, "sparsity: 0.3: "),
        ({"feature": 3}, "feature: unknown key"),
    ],
)
def test_mistakes_are_one_clear_line(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check_spec(values, BenchSpec)
    assert "\n" not in str(caught.value)
