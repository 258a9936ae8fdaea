"""TopK (Gao et al. 2024; arXiv 2512.05534, eq. 7)."""

import torch
from torch import Tensor

from harvest.errors import UserError
from train.kernels import Pattern, SparsePattern
from train.sparsity.base import Sparsity


class TopK(Sparsity):
    """The k largest pre-activations of each row, if positive; k = l0."""

    architecture = "topk"

    def __init__(self, l0: float, latents: int) -> None:
        super().__init__(l0, latents)
        if l0 != int(l0):
            raise UserError(f"sparsity.topk.l0: {l0:g} must be a whole number; batchtopk takes any")
        self.k = int(l0)

    def select(self, z_BF: Tensor) -> Pattern:
        return SparsePattern.from_topk(z_BF.topk(self.k, dim=1, sorted=False).indices, self.latents)

    def activate(self, z_N: Tensor, bias_N: Tensor, pattern: Pattern) -> Tensor:
        return torch.relu(z_N)

    def saved_keys(self) -> dict[str, object]:
        return {"k": self.k, "rescale_acts_by_decoder_norm": False}
