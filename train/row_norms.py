"""Activations in units of their own row: how some published dictionaries read them. What is trained here never does."""

from collections.abc import Callable

from torch import Tensor

RowNorm = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""`x` `(B, P)` -> `x` in its own units, and the shift and the scale `(B, 1)` that lead back."""


def layer_norm(x_BP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each row less its mean, over its standard deviation; SAELens adds ε on the way in and not on the way out."""
    mean_B1, deviation_B1 = x_BP.mean(1, keepdim=True), x_BP.std(1, keepdim=True)
    return (x_BP - mean_B1) / (deviation_B1 + 1e-5), mean_B1, deviation_B1


def constant_norm(x_BP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each row with the norm √P."""
    scale_B1 = x_BP.norm(dim=1, keepdim=True).clamp_min(1e-12) / x_BP.shape[1] ** 0.5
    return x_BP / scale_B1, scale_B1.new_zeros(()), scale_B1


ROW_NORMS: dict[str, RowNorm] = {"layer_norm": layer_norm, "constant_norm_rescale": constant_norm}
"""By SAELens's names."""
