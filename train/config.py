"""What a user may write about a dictionary. Imports nothing heavy: the Snakefile reads it."""

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from harvest.config import Count, Spec
from harvest.errors import UserError

DICTIONARY_FILES = ("cfg.json", "sae_weights.safetensors")
"""What a dictionary's directory has, here as in SAELens."""
SAME_IN_A_PASS = ("batch", "seed", "holdout", "tokens", "split")
"""What dictionaries that are trained in one pass must have in common, so that each sees the rows it would see alone."""


class SparsitySpec(Spec):
    """How latents are kept few. Every method has one knob, the l0 it should reach."""

    l0: Annotated[float, Field(gt=0)]
    """The mean number of active latents per row."""


class AnchorSpec(Spec):
    """Latents held to known directions (arXiv 2512.05534, section 4)."""

    source: Annotated[str, Field(pattern=r"^(truth|clusters|labels\..+)$")]
    """Where the directions come from: `truth` (columns of the bench's feature matrix, drawn at random, eq. 22),
    `labels.<set>` (the mean of each labelled subpopulation, eq. 23), or `clusters` (spherical k-means centres)."""
    count: Count
    """How many anchors; the first latents are held to them."""
    names: list[str] | None = None
    """With `labels.<set>`: these labels and no others; `count` of them, drawn at random, unless given."""
    weight: Annotated[float, Field(ge=0)] = 0.01
    """λ_anchor of eq. 25, where the loss is the fraction of variance unexplained, so that it means the same on every
    store. The paper's loss is in raw units: its 0.1 on the bench and 1.0 on CLIP are about 0.01 here."""


class MatryoshkaSpec(Spec):
    """Nested dictionaries inside one: the loss is a sum over them (give one of the two)."""

    prefixes: list[Annotated[float, Field(gt=0, le=1)]] | None = None
    """Shares of the latents, such as [0.25, 0.5, 1]: each prefix must reconstruct by itself (Bussmann et al. 2025)."""
    levels: list[Annotated[float, Field(gt=0)]] | None = None
    """Multiples of l0, such as [0.5, 1]: the strongest latents alone must reconstruct too (eq. 9)."""

    @pydantic.model_validator(mode="after")
    def _nested_up_to_the_whole(self) -> "MatryoshkaSpec":
        if (self.prefixes is None) == (self.levels is None):
            raise ValueError("give exactly one of prefixes, such as [0.25, 0.5, 1], and levels, such as [0.5, 1]")
        parts = self.prefixes or self.levels or []
        if parts != sorted(set(parts)) or parts[-1:] != [1]:
            raise ValueError(f"{parts}: the parts must grow and end with 1, the whole dictionary")
        return self


class AuxKSpec(Spec):
    """Dead latents learn to reconstruct what the live ones leave over (Gao et al. 2024; eq. 8)."""

    dead_after: Count = 10_000_000
    """A latent is dead once it has not fired for this many rows."""
    weight: Annotated[float, Field(gt=0)] = 1 / 32


class ResampleSpec(Spec):
    """Dead latents begin anew, in the directions of inputs that are reconstructed badly (Bricken et al. 2023)."""

    every: Count
    """Rows between two resamplings; the paper's are 205M rows apart."""
    until: Count | None = None
    """No resampling after this many rows; half of `tokens` unless given, so that new latents have time to learn."""
    window: Count | None = None
    """A latent is dead if it fired in none of this many rows; half of `every` unless given, as in the paper."""
    inputs: Count | None = None
    """Rows whose loss is measured, in chunks drawn at random; 100 batches unless given, as in the paper, or all."""

    @property
    def dead_after(self) -> int:
        """`window`, or its default."""
        return self.window or max(1, self.every // 2)

    @pydantic.model_validator(mode="after")
    def _window_is_over(self) -> "ResampleSpec":
        if self.window is not None and self.window > self.every:
            raise ValueError(
                f"window: {self.window} rows is longer than every, {self.every}: "
                "latents that began anew would be judged by the time before"
            )
        return self


class SitesSpec(Spec):
    """A dictionary reads sites and writes sites. SAE: the same. Transcoder: others. Crosscoder: several."""

    reads: Annotated[list[str], Field(min_length=1)]
    """Sites of the harvest whose activations are encoded; several are concatenated."""
    writes: Annotated[list[str], Field(min_length=1)] | None = None
    """Sites that are reconstructed; those read, unless given."""

    @property
    def written(self) -> list[str]:
        return self.writes or self.reads

    @property
    def kind(self) -> str:
        """`sae`, `transcoder` or `crosscoder`, from the sites alone."""
        if self.writes is not None and self.writes != self.reads:
            return "transcoder"
        return "sae" if len(self.reads) == 1 else "crosscoder"


class DictionarySpec(SitesSpec):
    """A dictionary that is trained."""

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
    split: Literal["rows", "latents"] = "rows"
    """What several processes share out: the rows of a batch (each process has the whole dictionary, gradients are
    averaged), or the latents (each has all rows, and 1/n of the latents with their moments), for a dictionary that is
    larger than one device. The result is the same."""
    seed: int = 0
    anchors: AnchorSpec | None = None
    matryoshka: MatryoshkaSpec | None = None
    auxk: AuxKSpec | None = None
    resample: ResampleSpec | None = None
    skip: bool = False
    """A linear connection from what is read to what is written, beside the latents (transcoders)."""

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

    @pydantic.model_validator(mode="after")
    def _resampled_at_all(self) -> "DictionarySpec":
        if self.resample is not None and self.resample.every > self.resample_until:
            raise ValueError(
                f"resample.every: the first resampling, after {self.resample.every} rows, is later than the last may "
                f"be, {self.resample_until}; make it smaller, or until larger"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _skip_goes_somewhere_else(self) -> "DictionarySpec":
        if self.skip and self.kind != "transcoder":
            raise ValueError(f"skip: true is for transcoders; this {self.kind} writes what it reads")
        return self

    @property
    def method(self) -> str:
        return next(iter(self.sparsity))

    @property
    def l0(self) -> float:
        return self.sparsity[self.method].l0

    @property
    def resample_until(self) -> int:
        """`resample.until`, or its default."""
        return (self.resample and self.resample.until) or self.tokens // 2

    @property
    def dead_after(self) -> int:
        """Rows without firing after which metrics call a latent dead: a tenth of the run, at most 10M."""
        return min(10_000_000, max(1, self.tokens // 10))

    @property
    def peak_learning_rate(self) -> float:
        return self.learning_rate or 2e-4 / (self.latents / 2**14) ** 0.5


class LoadSpec(SitesSpec):
    """A dictionary from elsewhere, in a directory as SAELens lays it out: it is taken as it is, and not trained."""

    load: Annotated[str, Field(min_length=1)]
    """A local directory, or `owner/name/folder@revision` on the Hugging Face Hub; the folder in the repository and the
    revision (a branch, tag or commit) may be left out."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _is_not_trained(cls, value: Any) -> Any:
        keys = [key for key in DictionarySpec.model_fields if key not in SitesSpec.model_fields]
        if isinstance(value, dict) and (of_training := [key for key in keys if key in value]):
            raise ValueError(f"{', '.join(of_training)}: for training, and this is loaded; give load, reads and writes")
        return value


def training_rows(rows: int, holdout: float) -> int:
    """Rows that training may see: all but the last `holdout` share."""
    kept = int(rows * (1 - holdout))
    if kept < 1:
        raise UserError(f"holdout: {holdout} of {rows} rows leaves none to train on")
    return kept
