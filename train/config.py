"""What a user may write about a dictionary. Imports nothing heavy: the Snakefile reads it."""

from typing import Annotated, Any

import pydantic
from pydantic import Field

from harvest.config import Count, Name, Spec


class SparsitySpec(Spec):
    """How latents are kept few. Every method has one knob, the l0 it should reach."""

    l0: Annotated[float, Field(gt=0)]
    """The mean number of active latents per row."""


class DictionarySpec(Spec):
    """A dictionary: it reads sites and writes sites. SAE: the same. Transcoder: others. Crosscoder: several."""

    harvest: Name
    reads: Annotated[list[str], Field(min_length=1)]
    """Sites of the harvest whose activations are encoded; several are concatenated."""
    writes: Annotated[list[str], Field(min_length=1)] | None = None
    """Sites that are reconstructed; those read, unless given."""
    latents: Count
    sparsity: dict[str, SparsitySpec]
    """One method and its l0, such as `{topk: {l0: 32}}`."""
    tokens: Count
    """Rows to train on; more than the store holds means several epochs."""
    batch: Count = 4096
    """Rows in one step, over all processes."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate of Adam; 2e-4 / sqrt(latents / 2^14) unless given (Gao et al. 2024)."""
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the store, its last rows, that training never sees; measurements are given there too."""
    seed: int = 0

    @pydantic.field_validator("sparsity")
    @classmethod
    def _one_method(cls, value: dict[str, Any]) -> dict[str, Any]:
        if len(value) != 1:
            raise ValueError("give exactly one method, such as {topk: {l0: 32}}")
        return value

    @pydantic.model_validator(mode="after")
    def _few_enough_active(self) -> "DictionarySpec":
        if self.l0 > self.latents:
            raise ValueError(f"l0 {self.l0:g} is larger than latents {self.latents}; it must be smaller")
        return self

    @property
    def method(self) -> str:
        return next(iter(self.sparsity))

    @property
    def l0(self) -> float:
        return self.sparsity[self.method].l0

    @property
    def written(self) -> list[str]:
        return self.writes or self.reads

    @property
    def kind(self) -> str:
        """`sae`, `transcoder` or `crosscoder`, from the sites alone."""
        if self.writes is not None and self.writes != self.reads:
            return "transcoder"
        return "sae" if len(self.reads) == 1 else "crosscoder"

    @property
    def peak_learning_rate(self) -> float:
        return self.learning_rate or 2e-4 / (self.latents / 2**14) ** 0.5
