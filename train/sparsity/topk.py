"""TopK (Gao et al. 2024; arXiv 2512.05534, eq. 7)."""

import torch
from torch import Tensor

from harvest.errors import UserError
from train.kernels import Pattern, SparsePattern
from train.ranks import Ranks
from train.sparsity.base import Sparsity

LEAST_SPARE, SPARE = 4, 8
"""At least so many more places are looked at than are wanted, and one for each so many that are. With 36 for 32, found
in bfloat16 at 768 x 16,384, 0.2% of the rows choose other latents than in float32; with 32 for 32 it is 35%."""


class TopK(Sparsity):
    """The k largest pre-activations of each row, if positive; k = l0."""

    architecture = "topk"

    def __init__(self, l0: float, latents: int) -> None:
        super().__init__(l0, latents)
        if l0 != int(l0):
            raise UserError(f"sparsity.topk.l0: {l0:g} must be a whole number; batchtopk takes any")
        self.k = int(l0)

    def select(self, z_BF: Tensor) -> Pattern:
        return candidates(z_BF, self.k, self.ranks)

    def activate(self, z_N: Tensor, bias_N: Tensor, pattern: Pattern) -> Tensor:
        return keep_largest(torch.relu(z_N), pattern, self.k, self.ranks)

    def saved_keys(self) -> dict[str, object]:
        return {"k": self.k, "rescale_acts_by_decoder_norm": False}


def candidates(z_BF: Tensor, k: int, ranks: Ranks) -> SparsePattern:
    """The k largest of each row, and where z is rounded those next to them, which may be larger when it is not."""
    looked_at = _with_spare(k) if z_BF.dtype == torch.bfloat16 else k
    latents = z_BF.shape[1]
    top = z_BF.topk(min(looked_at, latents), dim=1, sorted=False)
    pattern = SparsePattern.from_topk(top.indices, latents)
    if ranks.latent_shares == 1:
        return pattern
    least_B1 = ranks.largest_of_rows(top.values, looked_at)[:, -1:]
    return pattern.where((top.values >= least_B1).view(-1), top.values.view(-1))[0]


def keep_largest(values_N: Tensor, pattern: Pattern, k: int, ranks: Ranks) -> Tensor:
    """Zero for all but the k largest of each row among what `candidates` found; none of the values is negative."""
    assert isinstance(pattern, SparsePattern)
    if ranks.latent_shares > 1:
        place_N = torch.arange(len(values_N), device=values_N.device) - pattern.offsets_B1[pattern.rows_N]
        own_BK = values_N.new_zeros(pattern.rows, _with_spare(k))
        own_BK[pattern.rows_N, place_N] = values_N.detach()
        least_B = ranks.largest_of_rows(own_BK, k)[:, -1]
        return values_N * (values_N >= least_B[pattern.rows_N])
    values_BK = values_N.view(pattern.rows, -1)
    if values_BK.shape[1] <= k:
        return values_N
    kept_BK = torch.zeros_like(values_BK, dtype=torch.bool)
    kept_BK.scatter_(1, values_BK.detach().topk(k, dim=1, sorted=False).indices, True)
    return (values_BK * kept_BK).view(-1)


def _with_spare(k: int) -> int:
    return k + max(LEAST_SPARE, k // SPARE)
