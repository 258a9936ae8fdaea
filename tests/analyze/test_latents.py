import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from analyze.latents import EXAMPLES, LatentStatistics, Places, histogram_edges

EDGES = histogram_edges(2.0)
WINDOW = (3, 2)


@st.composite
def activations(draw: st.DrawFn) -> np.ndarray:
    """`(B, F)` with few distinct values, so that ties are common; some latents and rows may be silent."""
    rows, latents = draw(st.integers(1, 90)), draw(st.integers(1, 5))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    active = random.random((rows, latents)) < draw(st.sampled_from([0.0, 0.1, 0.6, 1.0]))
    values: np.ndarray = (active * random.integers(1, 6, (rows, latents))).astype(np.float32)
    return values


def statistics(x_BF: np.ndarray, start: int, stop: int) -> LatentStatistics:
    low, high = max(0, start - WINDOW[0]), min(len(x_BF), stop + WINDOW[1])
    rows_N, latents_N = x_BF[low:high].nonzero()
    offsets_B1 = np.searchsorted(rows_N, np.arange(high - low + 1))
    places = Places(low, offsets_B1, latents_N, x_BF[low:high][rows_N, latents_N])
    return LatentStatistics.of(places, start, stop, x_BF.shape[1], EDGES, WINDOW)


def assert_equal(one: LatentStatistics, other: LatentStatistics) -> None:
    for name in vars(one):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@given(activations())
def test_equals_the_definition(x_BF: np.ndarray) -> None:
    found = statistics(x_BF, 0, len(x_BF))
    np.testing.assert_array_equal(found.firing_F, (x_BF > 0).sum(0))
    np.testing.assert_allclose(found.sum_F, x_BF.sum(0, dtype=np.float64))
    padded_BF = np.pad(x_BF, (WINDOW, (0, 0)))
    for latent, x_B in enumerate(x_BF.T):
        counts, _ = np.histogram(x_B[x_B > 0], EDGES)
        np.testing.assert_array_equal(found.histogram_FH[latent], counts)
        best = sorted((-x, row) for row, x in enumerate(x_B.tolist()) if x > 0)[:EXAMPLES]
        missing = EXAMPLES - len(best)
        assert found.example_rows_FE[latent].tolist() == [row for _, row in best] + [-1] * missing
        assert found.example_values_FE[latent].tolist() == [-x for x, _ in best] + [0] * missing
        for example, (_, row) in enumerate(best):
            around = padded_BF[row : row + sum(WINDOW) + 1, latent]
            np.testing.assert_array_equal(found.windows_FEW[latent, example], around)


@settings(deadline=None)
@given(activations(), st.data())
def test_cut_anywhere_and_merged_it_is_the_same(x_BF: np.ndarray, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(1, max(1, len(x_BF) - 1)), max_size=4, unique=True))
    edges = sorted({0, *cuts, len(x_BF)})
    parts = [statistics(x_BF, a, b) for a, b in itertools.pairwise(edges)]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    assert_equal(merged, statistics(x_BF, 0, len(x_BF)))


def test_activations_beyond_the_grid_count_in_the_outermost_bins() -> None:
    x_BF = np.array([[1e-9], [1e9], [1.0]], np.float32)
    histogram_H = statistics(x_BF, 0, 3).histogram_FH[0]
    assert histogram_H[0] == 1
    assert histogram_H[-1] == 1
    assert histogram_H.sum() == 3
