"""BatchTopK (Bussmann et al. 2024; arXiv 2512.05534, section 2)."""

import torch
from torch import Tensor

from train.kernels import Pattern, SparsePattern, pattern_of, places
from train.sparsity.base import Sparsity, above


class BatchTopK(Sparsity):
    """In training the l0·B largest pre-activations of the batch, if positive; afterwards all above a fixed threshold.

    The threshold is the running mean of a batch's smallest active latent. A saved BatchTopK is a JumpReLU that has it
    for every latent.
    """

    architecture = "jumprelu"
    threshold: Tensor

    def __init__(self, l0: float, latents: int) -> None:
        super().__init__(l0, latents)
        self.register_buffer("threshold", torch.tensor(0.0))

    def select(self, z_BF: Tensor) -> Pattern:
        if not self.training:
            return pattern_of(above(z_BF, self.threshold))
        wanted = round(self.l0 * len(z_BF))
        flat_N = places(z_BF > 0.8 * self.threshold.to(z_BF.dtype))
        if not wanted <= len(flat_N) < z_BF.numel() // 8:
            top = z_BF.view(-1).topk(wanted, sorted=False).indices
        else:  # a few more than wanted: choosing among these is far faster than among all
            top = flat_N[z_BF.view(-1)[flat_N].topk(wanted, sorted=False).indices]
        return SparsePattern.from_flat(top.sort().values, *z_BF.shape)

    def activate(self, z_N: Tensor, bias_N: Tensor, pattern: Pattern) -> Tensor:
        if not self.training:
            return z_N * (z_N > self.threshold)
        values_N = torch.relu(z_N)
        with torch.no_grad():
            smallest = torch.where(values_N > 0, values_N, torch.inf).min()
            if torch.isfinite(smallest):
                self.threshold.copy_(torch.where(self.threshold > 0, self.threshold.lerp(smallest, 0.01), smallest))
        return values_N

    def saved_tensors(self) -> dict[str, Tensor]:
        return {"threshold": self.threshold.expand(self.latents)}

    @torch.no_grad()
    def rescale(self, factor: float) -> None:
        self.threshold.mul_(factor)
