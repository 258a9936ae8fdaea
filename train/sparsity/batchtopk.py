"""BatchTopK (Bussmann et al. 2024; arXiv 2512.05534, section 2)."""

import torch
from torch import Tensor

from train.kernels import Pattern, SparsePattern, pattern_of, places
from train.sparsity.base import Sparsity, above, less_rounding, start_threshold


class BatchTopK(Sparsity):
    """In training the l0·B largest pre-activations of the batch, if positive; afterwards all above a fixed threshold.

    The batch is that of all processes, and the choice is made among exact values: neither rounding nor how rows are
    shared has a say in it, and what equals the last one kept is kept too. The threshold is the running mean of a
    batch's smallest active latent. A saved BatchTopK is a JumpReLU that has it for every latent.
    """

    architecture = "jumprelu"
    threshold: Tensor

    def __init__(self, l0: float, latents: int) -> None:
        super().__init__(l0, latents)
        self.register_buffer("threshold", torch.tensor(0.0))

    def select(self, z_BF: Tensor) -> Pattern:
        if not self.training:
            return pattern_of(above(z_BF, self.threshold))
        z_flat = z_BF.view(-1)
        guess = 0.8 * self.threshold.to(z_BF.dtype)
        flat_N = places(z_BF > guess)  # choosing among these is far faster than among all
        lowest = self._lowest(z_flat[flat_N], len(z_BF))
        if lowest is None or lowest <= guess:
            lowest = self._lowest(z_flat, len(z_BF))
            assert lowest is not None, "there are more latents than l0"
            flat_N = places(z_BF >= lowest)
        else:
            flat_N = flat_N[z_flat[flat_N] >= lowest]
        return SparsePattern.from_flat(flat_N, *z_BF.shape)

    def _wanted(self, rows: int) -> int:
        return max(1, round(self.l0 * rows * self.ranks.row_shares))

    def _lowest(self, z_N: Tensor, rows: int) -> Tensor | None:
        """What the l0·B largest reach, rounded as they may be; None if these z are fewer."""
        wanted = self._wanted(rows)
        largest = self.ranks.largest(z_N, wanted)
        if len(largest) < wanted:
            return None
        # Once from the rounded smallest to the least that it may be, once more to what that may be rounded to.
        return less_rounding(less_rounding(largest.min()))

    def activate(self, z_N: Tensor, bias_N: Tensor, pattern: Pattern) -> Tensor:
        if not self.training:
            return z_N * (z_N > self.threshold)
        values_N = torch.relu(z_N)
        largest = self.ranks.largest(values_N.detach(), self._wanted(pattern.rows))
        smallest = torch.where(largest > 0, largest, torch.inf).min()
        if torch.isfinite(smallest):
            self.threshold.copy_(torch.where(self.threshold > 0, self.threshold.lerp(smallest, 0.01), smallest))
        return values_N * (values_N >= largest.min())

    @torch.no_grad()
    def start(self, z_BF: Tensor) -> None:
        """A first guess: from here on `select` looks at little more than it needs."""
        self.threshold.copy_(start_threshold(z_BF, self.l0, self.ranks))

    def saved_tensors(self) -> dict[str, Tensor]:
        return {"threshold": self.threshold.expand(self.latents)}

    @torch.no_grad()
    def rescale(self, factor: float) -> None:
        self.threshold.mul_(factor)
