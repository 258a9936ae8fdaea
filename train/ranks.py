"""What the processes of one training run tell each other. Alone, a process says nothing and every answer is its own."""

from dataclasses import dataclass

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """Process `rank` of `world`, each with every `world`-th row of a batch.

    All methods but the properties are collective: every process must call them, in the same order.
    """

    rank: int = 0
    world: int = 1

    @property
    def row_shares(self) -> int:
        """Into how many parts the rows of a batch are split."""
        return self.world

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


ALONE = Ranks()
