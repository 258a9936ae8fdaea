"""The theorems of arXiv 2512.05534, section 3: what each says, and what was measured beside it (theory.json)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ROUNDING = 1e-9
"""Float64 sums of a few numbers of the order of 1 are this near at least."""


@dataclass(frozen=True)
class Quantity:
    """A measured number beside the one that bounds it."""

    name: str
    measured: float
    relation: str
    """A key of `RELATIONS`."""
    bound: float
    bound_name: str = ""

    @property
    def holds(self) -> bool:
        return RELATIONS[self.relation](self.measured, self.bound)


RELATIONS: dict[str, Callable[[float, float], bool]] = {
    "at most": lambda x, bound: x <= bound + ROUNDING,
    "at least": lambda x, bound: x >= bound - ROUNDING,
    "equal to": lambda x, bound: abs(x - bound) <= ROUNDING,
    "above": lambda x, bound: x > bound + ROUNDING,
    "below": lambda x, bound: x < bound - ROUNDING,
}


@dataclass(frozen=True)
class Theorem:
    identifier: str
    title: str
    statement: str
    quantities: list[Quantity]
    note: str


def theorems(page: dict[str, Any]) -> list[Theorem]:
    """In the paper's order. `page`: theory.json."""
    return [
        Theorem(key, title, page[key]["statement"], *of(page[key]))
        for key, (title, of) in {
            "theorem_3_1": ("Theorem 3.1: the loss, one feature at a time", _approximation),
            "theorem_3_2": ("Theorem 3.2: piecewise biconvex", _biconvexity),
            "theorem_3_3": ("Theorem 3.3: the transposed features nearly solve it", _transposed),
            "theorem_3_4": ("Theorem 3.4: zero loss is not recovery", _zero_loss),
            "example_3_5": ("Example 3.5: a spurious minimum", _example),
            "theorem_3_6": ("Theorem 3.6: polysemantic patterns are partial minima", _partial_minima),
            "theorem_3_8": ("Theorem 3.8: feature absorption", _absorption),
        }.items()
    ]


Found = tuple[list[Quantity], str]


def _approximation(m: dict[str, Any]) -> Found:
    return [Quantity("|loss − approximate loss|", m["difference"], "at most", m["bound"], "n² C (1−S)²")], (
        f"A random dictionary of {m['features']} features at S = {m['sparsity']}, each set of features that can be on "
        f"weighed by its probability: the loss of eq. 3 is {m['loss']:.4g}, that of eq. 11 {m['approximate_loss']:.4g}."
    )


def _biconvexity(m: dict[str, Any]) -> Found:
    quantities = [
        Quantity("least gap between two W_D", m["least_gap_decoder"], "at least", 0),
        Quantity("least gap between two W_E of one pattern", m["least_gap_encoder"], "at least", 0),
        Quantity("gap between (cW_E, W_D/c) for two c", m["gap_both"], "below", 0),
    ]
    return quantities, (
        "A gap is the mean of the loss at two points less the loss half-way between them; no convex function has a "
        f"negative one. The first two are the least of {m['pairs']} random pairs; the third shows that the loss is not "
        "convex in both matrices at once."
    )


def _transposed(m: dict[str, Any]) -> Found:
    return [Quantity("approximate loss of W_E = [W_pᵀ; 0]", m["loss"], "at most", m["bound"], "n² M² Σ M_d")], (
        f"{m['features']} features in {m['width']} dimensions with the bench's own descent to "
        f"M = {m['interference']:.4f} and Σ M_d = 1. The bound holds with room to spare: it takes every "
        "pair of features to be at M."
    )


def _zero_loss(m: dict[str, Any]) -> Found:
    quantities = [
        Quantity(f"loss from start {m['seed']}, drawn below", m["loss"], "equal to", 0),
        Quantity("features it recovers, of 4 (|cosine| > 0.95)", m["recovered"], "equal to", 0),
        Quantity("dimensions of W_D left free with 8 latents", m["decoder_freedom_with_twice_the_latents"], "above", 0),
    ]
    return quantities, (
        f"Four features in two dimensions, ReLU, gradient descent from {m['starts']} random starts: {m['zero_loss']} "
        f"end at zero loss, of which {m['recovering_all']} recover all features and {m['recovering_none']} none."
    )


def _example(m: dict[str, Any]) -> Found:
    return _minimum("", m, 1), (
        "n = n_p = n_q = n_r = 2, Top-1∘ReLU, W_p = W_r = I, W_E = [[1, 1], [0, 0]], W_D = [[½, 0], [½, 0]]: one "
        "latent stands for both features, and gradient descent that arrives there stays."
    )


def _partial_minima(m: dict[str, Any]) -> Found:
    quantities = _minimum("constructed: ", m) + _minimum("Figure 4’s features: ", m["figure_4"])
    return quantities, (
        f"Constructed for the patterns {_sets(m['pattern'])} of six random features in eight dimensions, and "
        f"{_sets(m['figure_4']['pattern'])} of Figure 4’s four, with as many latents as sets."
    )


def _minimum(name: str, m: dict[str, Any], loss: float | None = None) -> list[Quantity]:
    by_loss = Quantity(f"{name}loss", m["loss"], "above" if loss is None else "equal to", loss or 0)
    return [
        Quantity(f"{name}norm of both gradients", m["gradient_norm"], "equal to", 0),
        by_loss,
        Quantity(f"{name}polysemantic latents", m["polysemantic"], "at least", 1),
    ]


def _absorption(m: dict[str, Any]) -> Found:
    quantities = [
        Quantity(
            f"five features in {width} dimensions: still realizable",
            found["still_realizable"],
            "equal to",
            found["realizable"],
            "realizable before",
        )
        for width in (6, 4)
        for found in [m[f"five_features_in_{width}_dimensions"]]
    ]
    return quantities, (
        f"From {_sets(m['pattern'])} to {_sets(m['absorbed'])}, decided by a linear programme for random feature "
        "matrices. In six dimensions the features are independent, and the statement holds each time. In four "
        "they are not: a child inside the cone of the siblings that stay cannot leave them, so the statement needs a "
        "condition there."
    )


def _sets(pattern: list[list[int]]) -> str:
    return ", ".join("{" + ", ".join(str(d + 1) for d in features) + "}" for features in pattern)
