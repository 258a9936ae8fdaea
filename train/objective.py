"""What training minimises."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train.dictionary import Dictionary


def reconstruction_loss(error_BR: Tensor) -> Tensor:
    """Mean squared error in units of the variance (1 per dimension): the fraction of variance unexplained."""
    return error_BR.square().mean()


@dataclass(frozen=True)
class Outcome:
    """One step's loss, its named terms, and which latents fired how often in this process's rows."""

    loss: Tensor
    terms: dict[str, Tensor]
    fired_F: Tensor
    active: Tensor


class Objective(nn.Module):
    """All loss terms in one `forward`, so that a wrapper such as DistributedDataParallel sees every use of a weight."""

    def __init__(self, dictionary: Dictionary, rounded: bool) -> None:
        super().__init__()
        self.dictionary = dictionary
        self.rounded = rounded

    def forward(self, x_BP: Tensor, y_BR: Tensor) -> Outcome:
        codes = self.dictionary.encode(x_BP, self.rounded)
        error_BR = self.dictionary.decode(codes, x_BP) - y_BR
        reconstruction = reconstruction_loss(error_BR)
        active_N = codes.values_N.detach() > 0
        return Outcome(
            reconstruction, {"reconstruction": reconstruction.detach()}, codes.pattern.count(active_N), active_N.sum()
        )


@torch.no_grad()
def keep_decoder_steps_on_sphere(dictionary: Dictionary) -> None:
    """Take off the part of the decoder's gradient along each row: Adam's step then does not fight the unit norm."""
    W_dec, gradient = dictionary.W_dec, dictionary.W_dec.grad
    assert gradient is not None
    along_F = torch.linalg.vecdot(gradient, W_dec)
    gradient.addcmul_(W_dec, along_F[:, None], value=-1)
