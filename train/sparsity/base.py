"""What every sparsity has in common."""

import abc

import torch
from torch import Tensor, nn

from train.kernels import Pattern


class Sparsity(nn.Module, abc.ABC):
    """σ of arXiv 2512.05534, eq. 10: every latent is either 0 or its pre-activation.

    It works in two steps, so that a training step never computes more than it must: `select` looks at all
    pre-activations, without gradients and possibly in bfloat16, and says which latents may be active; `activate` gets
    the pre-activations of just those, exact and with gradients.
    """

    architecture: str
    """What SAELens calls a dictionary with this σ at inference."""

    def __init__(self, l0: float, latents: int) -> None:
        super().__init__()
        self.l0, self.latents = l0, latents

    @abc.abstractmethod
    def select(self, z_BF: Tensor) -> Pattern:
        """The latents that may be active, from pre-activations that may be rounded."""

    @abc.abstractmethod
    def activate(self, z_N: Tensor, pattern: Pattern) -> Tensor:
        """Latents from the exact pre-activations at the selected places; zero where one is not active after all."""

    @torch.no_grad()
    def rescale(self, factor: float) -> None:
        """Turn the parameters into those of `factor · σ(z / factor)`, for latents in other units."""

    def saved(self) -> dict[str, object]:
        """What SAELens's `cfg.json` says of this σ besides the architecture."""
        return {}
