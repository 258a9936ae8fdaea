"""Sparse non-negative coefficients (arXiv 2512.05534, eq. 30 and 31), and three extensions the paper leaves open."""

import numpy as np
import scipy.optimize
import scipy.sparse

from harvest.bench.config import BenchSpec

BLOCK = 1024
"""Rows are drawn in blocks of this many, each from a counter-based stream of its own: any block can be drawn again."""

COEFFICIENTS, FEATURES = 0, 1
"""What a random stream is for: with the seed in front, it keeps the streams of one bench apart."""


def stream(spec: BenchSpec, purpose: int, *which: int) -> np.random.Generator:
    """The random stream of one block of coefficients, or of one site's features: a pure function of its arguments."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([spec.seed, purpose, *which])))


def parents(spec: BenchSpec) -> np.ndarray:
    """Each feature's parent, `(features,)` int32, -1 for none: parents first, then their children family by family."""
    parents_N = np.full(spec.features, -1, dtype=np.int32)
    if spec.hierarchy is not None:
        families = np.repeat(np.arange(spec.hierarchy.parents), spec.hierarchy.children)
        parents_N[spec.hierarchy.parents : spec.in_families] = families
    return parents_N


def frequencies(spec: BenchSpec) -> np.ndarray:
    """The probability that each feature is on, `(features,)` float64; a parent's is that of any child being on."""
    density_N = np.full(spec.features, 1 - spec.sparsity)
    if spec.power_law is not None:
        density_N = _power_law(spec.features, spec.power_law, 1 - spec.sparsity)
    if spec.hierarchy is not None:
        parents_N = parents(spec)
        # P(some child on) = 1 - (1 - p)^children, as children are independent of each other.
        density_N = np.where(parents_N < 0, density_N, 1 - (1 - density_N[parents_N]) ** (1 / spec.hierarchy.children))
    return density_N


def _power_law(features: int, exponent: float, mean: float) -> np.ndarray:
    """Densities proportional to rank^-exponent with the asked mean, none above a half.

    Without the limit the paper's defaults would ask for a first feature with probability 1.3 at exponent 1.
    """
    ranks_N = np.arange(1, features + 1, dtype=np.float64) ** -exponent

    def densities(scale: float) -> np.ndarray:
        return np.minimum(scale * ranks_N, 0.5)

    # At the upper end every density is a half, which is at least the mean, as S is at least a half.
    scale = scipy.optimize.brentq(lambda scale: densities(scale).mean() - mean, 0, 0.5 / ranks_N[-1], rtol=1e-14)
    return densities(scale)


def coefficient_block(spec: BenchSpec, block: int) -> scipy.sparse.csr_array:
    """Coefficients of rows `block * BLOCK` onwards, sparse `(BLOCK, features)` float32: a function of (seed, block).

    A feature is on when its uniform draw falls below its density (eq. 30). In a correlated group each member takes,
    with probability √ρ, the group's draw in place of its own: densities stay as asked, and two members of equal
    density have correlation √ρ·√ρ = ρ.
    """
    rng = stream(spec, COEFFICIENTS, block)
    draws_BN = rng.random((BLOCK, spec.features), dtype=np.float32)
    if (group := spec.correlation) is not None:
        grouped_BN = draws_BN[:, spec.in_families : spec.in_families + group.groups * group.members]
        own_BGM = grouped_BN.reshape(BLOCK, group.groups, group.members)
        shared_BG1 = rng.random((BLOCK, group.groups, 1), dtype=np.float32)
        takes_shared_BGM = rng.random(own_BGM.shape, dtype=np.float32) < np.sqrt(group.strength)
        grouped_BN[:] = np.where(takes_shared_BGM, shared_BG1, own_BGM).reshape(grouped_BN.shape)
    on_BN = draws_BN < frequencies(spec).astype(np.float32)
    if (family := spec.hierarchy) is not None:
        children_BPC = on_BN[:, family.parents : spec.in_families].reshape(BLOCK, family.parents, family.children)
        on_BN[:, : family.parents] = children_BPC.any(axis=2)
    row, column = np.nonzero(on_BN)
    magnitudes = spec.magnitude_minimum + rng.exponential(spec.magnitude_scale, len(row))
    return scipy.sparse.csr_array((magnitudes.astype(np.float32), (row, column)), shape=on_BN.shape)
