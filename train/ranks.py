"""What the processes of one training run share, and what they tell each other. Alone, a process says nothing."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """Process `rank` of `world`.

    Split by rows, each has the whole dictionary and every `world`-th row of a batch; gradients are averaged. Split by
    latents, each has all rows and a run of `1/world` of the latents, with their weights and whatever is kept for each;
    what is not of a latent (`b_dec`, `W_skip`) every process has and updates alike.

    All methods but the properties are collective: every process must call them, in the same order.
    """

    rank: int = 0
    world: int = 1
    split: Literal["rows", "latents"] = "rows"

    @property
    def row_shares(self) -> int:
        """Into how many parts the rows of a batch are split."""
        return self.world if self.split == "rows" else 1

    @property
    def row_share(self) -> int:
        """Which of these parts is this process's."""
        return self.rank if self.split == "rows" else 0

    @property
    def latent_shares(self) -> int:
        """Into how many parts the latents are split."""
        return self.world if self.split == "latents" else 1

    @property
    def latent_share(self) -> int:
        """Which of these parts is this process's."""
        return self.rank if self.split == "latents" else 0

    def sum(self, own: Tensor) -> Tensor:
        """Elementwise over all processes."""
        if self.world == 1:
            return own
        total = own.clone()
        torch.distributed.all_reduce(total)
        return total

    def stack(self, own: Tensor) -> Tensor:
        """Every process's tensor, all of one shape, along a new first dimension."""
        if self.world == 1:
            return own[None]
        found = own.new_empty(self.world, *own.shape)
        torch.distributed.all_gather(list(found), own.contiguous())
        return found

    def largest(self, own: Tensor, k: int) -> Tensor:
        """The k largest numbers of those that all processes hold, however many each, in no order: `(≤ k,)`."""
        top = own.topk(min(k, len(own)), sorted=False).values
        if self.world == 1:
            return top
        most = int(self.stack(torch.tensor(len(top), device=own.device)).max())
        found = self.stack(F.pad(top, (0, most - len(top)), value=-torch.inf)).view(-1)
        found = found.topk(min(k, len(found)), sorted=False).values
        return found[found > -torch.inf]

    def largest_of_rows(self, own_BK: Tensor, k: int) -> Tensor:
        """Each row's k largest over all latents, descending, -inf where there are fewer: `(B, k)`.

        A process may hold any number K of a row's values.
        """
        top_BK = own_BK.topk(min(k, own_BK.shape[1]), dim=1).values
        top_BK = F.pad(top_BK, (0, k - top_BK.shape[1]), value=-torch.inf)
        if self.latent_shares == 1:
            return top_BK
        return torch.cat(list(self.stack(top_BK)), 1).topk(k, dim=1).values

    def over_latents(self, own: Tensor) -> Tensor:
        """The sum of what the parts of the latents contribute. Each process owns the gradient of its own part."""
        if self.latent_shares == 1:
            return own
        total: Tensor = _SumForward.apply(own)  # type: ignore[no-untyped-call]
        return total

    def to_latents(self, common: Tensor) -> Tensor:
        """What all processes have, on its way to the parts of the latents: its gradient is the sum of what they say."""
        if self.latent_shares == 1:
            return common
        found: Tensor = _SumBackward.apply(common)  # type: ignore[no-untyped-call]
        return found

    def wait(self) -> None:
        """Until every process is here, where each has latents of its own."""
        if self.latent_shares > 1:
            torch.distributed.barrier()


ALONE = Ranks()


class _SumForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        return gradients[0]  # type: ignore[no-any-return]


class _SumBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, common: Tensor) -> Tensor:
        return common.view_as(common)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        total: Tensor = gradients[0].clone()
        torch.distributed.all_reduce(total)
        return total
