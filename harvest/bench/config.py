"""What a user may write about the Linear Representation Bench. The defaults are the paper's Table 3."""

from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator

from harvest.bench.features import welch_bound
from harvest.config import Count, Name, Spec


class HierarchySpec(Spec):
    """Hierarchical concepts (definition 3.2): a parent is on if and only if at least one of its children is.

    The parents are the first features, their children follow, family by family.
    """

    parents: Count
    """How many parents."""
    children: Annotated[Count, Field(ge=2)]
    """Children of each parent. They share its density: a child's is `1 - (1 - density)^(1/children)`."""

    @property
    def features(self) -> int:
        """How many features the families take."""
        return self.parents * (1 + self.children)


class CorrelationSpec(Spec):
    """Features that come on together. The groups follow the hierarchy's families, or are the first features."""

    groups: Count
    """How many groups."""
    members: Annotated[Count, Field(ge=2)]
    """Features in each group."""
    strength: Annotated[float, Field(gt=0, le=1)]
    """Correlation between two members' being on. Where `power_law` makes their densities unequal it is this share of
    the largest correlation that their densities allow."""

    @property
    def features(self) -> int:
        """How many features the groups take."""
        return self.groups * self.members


Part = HierarchySpec | CorrelationSpec | None


class BenchSpec(Spec):
    """A bench: rows x = W c with known features W and known sparse non-negative coefficients c (eq. 27 to 32)."""

    features: Annotated[Count, Field(ge=2)] = 1000
    """n: how many ground-truth features."""
    sites: dict[Name, Count] = Field(default_factory=lambda: {"x": 768}, min_length=1)
    """Site name -> width (n_p). Each site has a feature matrix of its own; all share the coefficients, so that a
    transcoder can read one and write another, and a crosscoder can read several."""
    rows: Count = 100_000
    """N: how many samples."""
    sparsity: Annotated[float, Field(ge=0.5, lt=1)] = 0.99
    """S: the probability that a feature is off; 1 - S is its density."""
    interference: Annotated[float, Field(gt=0, lt=1, validate_default=True)] = 0.1
    """M: the largest inner product between two features of one site."""
    magnitude_minimum: Annotated[float, Field(ge=0)] = 0.5
    """c_min: an active coefficient is `c_min + Exp(β)` (eq. 31). The paper does not publish c_min and β: these two
    give a mean of 1 and keep an active feature clear of the interference."""
    magnitude_scale: Annotated[float, Field(ge=0)] = 0.5
    """β: the mean of the exponential part."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides the feature matrices and every row."""
    hierarchy: HierarchySpec | None = None
    """Parents that are on exactly when a child is."""
    correlation: CorrelationSpec | None = None
    """Groups of features that come on together."""
    power_law: Annotated[float, Field(gt=0, le=3)] | None = None
    """Exponent α of unequal densities: feature i's is proportional to `(i + 1)^-α`, at most a half, and 1 - S on
    average. Without it every feature's density is 1 - S."""

    @field_validator("interference")
    @classmethod
    def _above_the_welch_bound(cls, interference: float, info: ValidationInfo) -> float:
        for site, width in info.data.get("sites", {}).items():
            features = info.data.get("features", 0)
            if features > width and interference < (bound := welch_bound(features, width)):
                raise ValueError(
                    f"{features} directions in width {width} (site {site}) cannot all stay this far apart: "
                    f"the Welch bound is {bound:.4f}; ask for more than that, for fewer features or for a wider site"
                )
        return interference

    @field_validator("hierarchy", "correlation")
    @classmethod
    def _enough_features(cls, part: Part, info: ValidationInfo) -> Part:
        before = info.data.get("hierarchy")
        needed = sum(each.features for each in (before, part) if each is not None)
        if needed > info.data.get("features", needed):
            raise ValueError(
                f"the families and groups need {needed} features, and the bench has {info.data['features']}"
            )
        return part

    @property
    def in_families(self) -> int:
        """How many features are parents or children: the first ones."""
        return 0 if self.hierarchy is None else self.hierarchy.features
