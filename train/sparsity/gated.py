"""Gated (Rajamanoharan et al. 2024; arXiv 2512.05534, section 2)."""

import torch
from torch import Tensor, nn

from train.kernels import Pattern, pattern_of
from train.sparsity.base import Sparsity, above, start_threshold


class Gated(Sparsity):
    """A gate `H(π)` on a magnitude `ReLU(exp(r)·(π − b_enc) + b_mag)`; π is the pre-activation, b_enc the gate's bias.

    The penalty is the L1 norm of the open gates `ReLU(π)`, which must also reconstruct through a frozen decoder.
    """

    architecture = "gated"
    bias_name = "b_gate"

    def __init__(self, l0: float, latents: int) -> None:
        super().__init__(l0, latents)
        self.r_mag = nn.Parameter(torch.zeros(latents))
        self.b_mag = nn.Parameter(torch.zeros(latents))

    def select(self, z_BF: Tensor) -> Pattern:
        return pattern_of(above(z_BF, 0.0))

    def activate(self, z_N: Tensor, bias_N: Tensor, pattern: Pattern) -> Tensor:
        magnitude_N = pattern.pick(self.r_mag).exp() * (z_N - bias_N) + pattern.pick(self.b_mag)
        return torch.relu(magnitude_N) * (z_N > 0)

    def penalty(self, z_N: Tensor, values_N: Tensor, pattern: Pattern, decoder_norms_F: Tensor) -> Tensor:
        return (torch.relu(z_N) * pattern.pick(decoder_norms_F.detach())).sum() / pattern.rows

    def gate(self, z_N: Tensor) -> Tensor:
        return torch.relu(z_N)

    @torch.no_grad()
    def start(self, z_BF: Tensor) -> Tensor:
        return -start_threshold(z_BF, 4 * self.l0, self.ranks)

    @torch.no_grad()
    def rescale(self, factor: float) -> None:
        self.b_mag.mul_(factor)
