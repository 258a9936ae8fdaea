"""Training sees centred activations of unit variance; a saved dictionary sees the model's own units."""

from dataclasses import dataclass

import torch
from torch import Tensor

from harvest.store import Store
from train.dictionary import Dictionary
from train.sparsity.gated import Gated


@dataclass(frozen=True)
class Scaling:
    """`x̃ = (x − mean) · scale` for the concatenation of some sites: each site gets a variance of 1 per dimension.

    One factor a site, from the store's statistics, so directions and angles within a site stay as they are.
    """

    mean: Tensor
    scale: Tensor

    @staticmethod
    def of(store: Store, sites: list[str]) -> "Scaling":
        means, scales = [], []
        for site in sites:
            found = store.statistics(store.site(site))
            means.append(torch.from_numpy(found.mean).float())
            variance = float(found.variance.mean())
            scales.append(torch.full_like(means[-1], variance**-0.5 if variance > 0 else 1.0))
        return Scaling(torch.cat(means), torch.cat(scales))

    def to(self, device: torch.device) -> "Scaling":
        return Scaling(self.mean.to(device), self.scale.to(device))

    def __call__(self, x_BD: Tensor) -> Tensor:
        return (x_BD.float() - self.mean) * self.scale


@torch.no_grad()
def unscale(dictionary: Dictionary, read: Scaling, written: Scaling) -> None:
    """Turn a dictionary of scaled activations into the same function of the model's own, in place.

    Every σ commutes with a positive factor, so latents can be counted in units of the (first) written site and a
    unit-norm decoder row stays one.
    """
    unit = written.scale[0]
    dictionary.W_enc.mul_(read.scale / unit)
    dictionary.b_enc.div_(unit)
    dictionary.W_dec.mul_(unit / written.scale)
    dictionary.b_dec.div_(written.scale).add_(written.mean)
    dictionary.sparsity.rescale(1 / float(unit))
    skipped_R = torch.zeros_like(written.mean)
    if dictionary.W_skip is not None:
        dictionary.W_skip.mul_(read.scale / written.scale[:, None])
        skipped_R = dictionary.W_skip @ read.mean
        dictionary.b_dec.sub_(skipped_R)
    # The encoder's biases take over what is no longer taken off its input: the mean, or a part of b_dec.
    shift_F = dictionary.W_enc @ (skipped_R if dictionary.centered else read.mean)
    dictionary.b_enc.sub_(shift_F)
    if isinstance(dictionary.sparsity, Gated):
        dictionary.sparsity.b_mag.sub_(dictionary.sparsity.r_mag.exp() * shift_F)
