"""What every sparsity has in common."""

import abc
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from train.kernels import Pattern
from train.ranks import ALONE, Ranks

SLACK = 2.0**-7
"""How far a pre-activation computed in bfloat16 may lie from the exact one: this much, and as much of its size.

Input, weights and bias are rounded by up to 2^-9 of their size, the result once more. Training sees a variance of 1 per
dimension, so what the first three do to a latent of unit norm is about 2^-9 whatever the latent's size.
"""


class Sparsity(nn.Module, abc.ABC):
    """σ of arXiv 2512.05534, eq. 10: every latent is either 0 or its pre-activation.

    It works in two steps, so that a training step never computes more than it must: `select` looks at all
    pre-activations, without gradients and possibly in bfloat16, and says which latents may be active; `activate` gets
    the pre-activations of just those, exact and with gradients.
    """

    architecture: str
    """What SAELens calls an SAE with this σ at inference; a name of our own where it has none."""
    bias_name: str = "b_enc"
    """What SAELens calls the encoder's bias beside this σ."""
    ranks: Ranks = ALONE
    """The processes that train this σ. What is said of a batch or of a row is said of all rows and all latents."""

    def __init__(self, l0: float, latents: int) -> None:
        super().__init__()
        self.l0, self.latents = l0, latents

    @abc.abstractmethod
    def select(self, z_BF: Tensor) -> Pattern:
        """The latents that may be active, from pre-activations that may be rounded."""

    @abc.abstractmethod
    def activate(self, z_N: Tensor, bias_N: Tensor, pattern: Pattern) -> Tensor:
        """Latents from the exact pre-activations at the selected places; zero where one is not active after all.

        `bias_N` is the encoder's bias there, which `z_N` contains.
        """

    def penalty(self, z_N: Tensor, values_N: Tensor, pattern: Pattern, decoder_norms_F: Tensor) -> Tensor | None:
        """What drives l0 down, per row; a controller steers its weight so that l0 comes to the target.

        None where σ itself fixes l0. `decoder_norms_F`: Σ over the written sites of each latent's decoder norm.
        """
        return None

    def gate(self, z_N: Tensor) -> Tensor | None:
        """Latents as a gate alone would have them, which must reconstruct too (Gated only)."""
        return None

    @torch.no_grad()
    def start(self, z_BF: Tensor) -> Tensor | None:
        """Adapt to the first batch's pre-activations. May return what to add to the encoder's bias."""
        return None

    @torch.no_grad()
    def rescale(self, factor: float) -> None:
        """Turn the parameters into those of `factor · σ(z / factor)`, for latents in other units."""

    def saved_keys(self) -> dict[str, object]:
        """What SAELens's `cfg.json` says of this σ besides the architecture."""
        return {}

    def saved_tensors(self) -> dict[str, Tensor]:
        """What SAELens's weights hold of this σ, `(F,)` each."""
        return dict(self.named_parameters())

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what `saved_tensors` of the same architecture gave."""
        for name, parameter in self.named_parameters():
            parameter.copy_(tensors[name])


def start_threshold(z_BF: Tensor, active: float, ranks: Ranks) -> Tensor:
    """The threshold that `active` pre-activations a row exceed, over all processes' rows."""
    count = max(1, round(len(z_BF) * ranks.row_shares * active))
    return ranks.largest(z_BF.view(-1), count).min().clamp_min(1e-3)


def above(z_BF: Tensor, threshold: Tensor | float) -> Tensor:
    """Where `z > threshold` may hold once a rounded z is computed exactly."""
    if z_BF.dtype != torch.bfloat16:
        return z_BF > threshold
    return z_BF > less_rounding(torch.as_tensor(threshold, device=z_BF.device)).to(z_BF.dtype)


def less_rounding(z: Tensor) -> Tensor:
    """The least that a z may be once it is rounded."""
    return z - SLACK * (1 + z.abs())
