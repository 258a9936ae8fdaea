import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from analyze.encoded import Places
from analyze.latents import EXAMPLES, SAMPLE, LatentStatistics, hash_of, histogram_edges, quantile_groups

EDGES = histogram_edges(2.0)
LABELS = 3


def labels_of(rows: int) -> np.ndarray:
    """A label `(B,)` for every row, -1 for none."""
    found: np.ndarray = np.random.default_rng(5).integers(-1, LABELS, rows)
    return found


@st.composite
def activations(draw: st.DrawFn) -> np.ndarray:
    """`(B, F)` with few distinct values, so that ties are common; some latents and rows may be silent."""
    rows, latents = draw(st.integers(1, 90)), draw(st.integers(1, 5))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    active = random.random((rows, latents)) < draw(st.sampled_from([0.0, 0.1, 0.6, 1.0]))
    values: np.ndarray = (active * random.integers(1, 6, (rows, latents))).astype(np.float32)
    return values


def places_of(x_BF: np.ndarray, start: int, stop: int) -> Places:
    rows_N, latents_N = x_BF[start:stop].nonzero()
    offsets_B1 = np.searchsorted(rows_N, np.arange(stop - start + 1))
    return Places(start, offsets_B1, latents_N, x_BF[start:stop][rows_N, latents_N])


def statistics(x_BF: np.ndarray, start: int, stop: int) -> LatentStatistics:
    labels = {"set": (labels_of(len(x_BF))[start:stop], LABELS)}
    return LatentStatistics.of(places_of(x_BF, start, stop), x_BF.shape[1], EDGES, labels)


def assert_equal(one: LatentStatistics, other: LatentStatistics) -> None:
    for name, mine in vars(one).items():
        theirs = getattr(other, name)
        for ours, other_ones in [(mine["set"], theirs["set"])] if name.startswith("label_") else [(mine, theirs)]:
            np.testing.assert_array_equal(ours, other_ones, err_msg=name)


@given(activations())
def test_equals_the_definition(x_BF: np.ndarray) -> None:
    found = statistics(x_BF, 0, len(x_BF))
    np.testing.assert_array_equal(found.firing_F, (x_BF > 0).sum(0))
    np.testing.assert_allclose(found.sum_F, x_BF.sum(0, dtype=np.float64))
    label_B = labels_of(len(x_BF))
    np.testing.assert_array_equal(found.label_rows["set"], [(label_B == label).sum() for label in range(LABELS)])
    for label in range(LABELS):
        of_label_BF = x_BF[label_B == label]
        np.testing.assert_array_equal(found.label_firing["set"][:, label], (of_label_BF > 0).sum(0))
        np.testing.assert_allclose(found.label_sum["set"][:, label], of_label_BF.sum(0, dtype=np.float64))
    for latent, x_B in enumerate(x_BF.T):
        counts, _ = np.histogram(x_B[x_B > 0], EDGES)
        np.testing.assert_array_equal(found.histogram_FH[latent], counts)
        best = sorted((-x, row) for row, x in enumerate(x_B.tolist()) if x > 0)[:EXAMPLES]
        missing = EXAMPLES - len(best)
        assert found.example_rows_FE[latent].tolist() == [row for _, row in best] + [-1] * missing
        assert found.example_values_FE[latent].tolist() == [-x for x, _ in best] + [0] * missing
        active = np.flatnonzero(x_B)
        sample = sorted(active.tolist(), key=lambda row: int(hash_of(np.array([row]))[0]))[:SAMPLE]
        assert found.sample_rows_FK[latent].tolist() == sample + [-1] * (SAMPLE - len(sample))
        np.testing.assert_array_equal(found.sample_values_FK[latent][: len(sample)], x_B[sample])


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


@given(st.integers(0, 2**32), st.integers(0, 60))
def test_quantile_groups(seed: int, active: int) -> None:
    """All of the sample where it is small; as many of each tenth as are shown where it is large."""
    random = np.random.default_rng(seed)
    rows_1K, values_1K = np.full((1, 60), -1, np.int64), np.zeros((1, 60), np.float32)
    drawn = random.choice(10_000, active, replace=False)
    rows_1K[0, :active] = drawn[np.argsort(hash_of(drawn))]
    values_1K[0, :active] = random.integers(1, 9, active)
    rows_1GX, values_1GX = quantile_groups(rows_1K, values_1K, 10, 5)
    value_of = dict(zip(rows_1K[0].tolist(), values_1K[0].tolist(), strict=True))
    groups = [[row for row in group if row >= 0] for group in rows_1GX[0].tolist()]
    assert sum(map(len, groups)) == sum(min(5, len(part)) for part in np.array_split(np.arange(active), 10))
    assert len({row for group in groups for row in group}) == sum(map(len, groups))
    assert [value_of[row] for group in groups for row in group] == values_1GX[rows_1GX >= 0].tolist()
    shown = [[value_of[row] for row in group] for group in groups if group]
    assert all(max(low) <= min(high) for low, high in itertools.pairwise(shown))
    assert all(group == sorted(group, reverse=True) for group in shown)


def test_a_sample_is_of_all_rows_alike() -> None:
    x_BF = np.ones((20_000, 2), np.float32)
    parts = [statistics(x_BF, start, start + 5_000) for start in range(0, 20_000, 5_000)]
    rows_FK = parts[0].merge(parts[1]).merge(parts[2]).merge(parts[3]).sample_rows_FK
    assert (rows_FK[0] == rows_FK[1]).all(), "latents that are active in the same rows have the same sample"
    counts, _ = np.histogram(rows_FK[0], 4, (0, 20_000))
    assert counts.sum() == SAMPLE
    assert (abs(counts - SAMPLE / 4) < 4 * (SAMPLE * 3 / 16) ** 0.5).all()
