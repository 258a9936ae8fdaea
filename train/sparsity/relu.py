"""ReLU with an L1 penalty (arXiv 2512.05534, eq. 5)."""

import torch
from torch import Tensor

from train.kernels import Pattern, pattern_of
from train.sparsity.base import Sparsity, above, start_threshold


class ReLU(Sparsity):
    """Every positive pre-activation; the penalty is `Σ_i f_i Σ_m ‖W_dec,i,m‖` over the written sites m."""

    architecture = "standard"

    def select(self, z_BF: Tensor) -> Pattern:
        return pattern_of(above(z_BF, 0.0))

    def activate(self, z_N: Tensor, bias_N: Tensor, pattern: Pattern) -> Tensor:
        return torch.relu(z_N)

    def penalty(self, z_N: Tensor, values_N: Tensor, pattern: Pattern, decoder_norms_F: Tensor) -> Tensor:
        return (values_N * pattern.pick(decoder_norms_F)).sum() / pattern.rows

    @torch.no_grad()
    def start(self, z_BF: Tensor) -> Tensor:
        """Start sparse: a random half of all latents is slow to compute and slow to switch off."""
        return -start_threshold(z_BF, 4 * self.l0, self.ranks)
