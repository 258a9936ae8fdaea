"""Partners against all pairs in full."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analyze import cofiring
from analyze.cofiring import CANDIDATES, PARTNERS, candidates, correlation, measure_cofiring
from analyze.encoded import Places
from analyze.latents import LatentStatistics, histogram_edges


class Blocks:
    """Encoded rows in memory."""

    def __init__(self, active_BF: np.ndarray, block: int) -> None:
        self.rows, self.latents = active_BF.shape
        self.active_BF = active_BF
        self.ranges = [(start, min(start + block, self.rows)) for start in range(0, self.rows, block)]

    def block(self, number: int) -> Places:
        start, stop = self.ranges[number]
        rows_N, latents_N = self.active_BF[start:stop].nonzero()
        offsets_B1 = np.searchsorted(rows_N, np.arange(stop - start + 1))
        return Places(start, offsets_B1, latents_N, np.ones(len(rows_N), np.float32))


def statistics(encoded: Blocks) -> LatentStatistics:
    parts = [
        LatentStatistics.of(encoded.block(number), encoded.latents, histogram_edges(1.0), {})
        for number in range(len(encoded.ranges))
    ]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    return merged


def related(random: np.random.Generator, rows: int, latents: int) -> np.ndarray:
    """Latents of all rates, in pairs of which one copies some of the other."""
    active_BF = random.random((rows, latents)) < 10.0 ** random.uniform(-2.5, -0.3, latents)
    copied_BF = active_BF[:, ::-1] & (random.random((rows, latents)) < random.random(latents))
    return np.asarray(active_BF | copied_BF)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, CANDIDATES + 1), st.sampled_from([7, 100, 10_000]))
def test_equals_all_pairs(seed: int, latents: int, block: int) -> None:
    """With no more latents than candidates everyone is considered, and all is exact."""
    active_BF = related(np.random.default_rng(seed), 300, latents)
    encoded = Blocks(active_BF, block)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cofiring, "LATENTS_AT_ONCE", 3)
        patched.setattr(cofiring, "OTHERS_AT_ONCE", 2)
        found = measure_cofiring(encoded, active_BF.sum(0), statistics(encoded).sample_rows_FK)  # type: ignore[arg-type]
    both_FF = active_BF.T.astype(int) @ active_BF.astype(int)
    fired_F = active_BF.sum(0)
    for latent in range(latents):
        wanted = []
        for other in set(range(latents)) - {latent}:
            if 0 < fired_F[latent] < 300 and 0 < fired_F[other] < 300:
                phi = float(np.corrcoef(active_BF[:, latent], active_BF[:, other])[0, 1])
                either = fired_F[latent] + fired_F[other] - both_FF[latent, other]
                if phi > 1e-12:
                    wanted.append((phi, other, both_FF[latent, other] / either))
        wanted = sorted(wanted, key=lambda found: (-round(found[0], 9), found[1]))[:PARTNERS]
        there = found.latents_FX[latent] >= 0
        assert there.sum() == len(wanted)
        assert found.correlation_FX[latent][there] == pytest.approx([phi for phi, _, _ in wanted], rel=1e-5)
        for partner, jaccard in zip(found.latents_FX[latent][there], found.jaccard_FX[latent][there], strict=True):
            assert jaccard == pytest.approx(next(j for _, other, j in wanted if other == partner), rel=1e-5)


def test_the_closest_of_many_are_candidates() -> None:
    """Pairs that share most of their rows are found among 400 latents from samples alone, the rarest too."""
    random = np.random.default_rng(0)
    active_BF = random.random((30_000, 400)) < 10.0 ** random.uniform(-3.5, -1, 400)
    active_BF[:, 200:] = active_BF[:, :200] & (random.random((30_000, 200)) < 0.8)
    encoded = Blocks(active_BF, 8_000)
    found_FC = candidates(statistics(encoded).sample_rows_FK, active_BF.sum(0), encoded.rows)
    live = np.flatnonzero(active_BF[:, 200:].any(0))
    assert len(live) > 180
    assert all(latent + 200 in found_FC[latent] for latent in live)


def test_correlation_of_what_never_varies_is_none() -> None:
    assert correlation(np.array([3, 0]), np.array([3.0, 0.0]), np.array([3.0, 2.0]), 3).tolist() == [0, 0]
