"""The same function in another form: what a file format may ask for in place of the form that was trained."""

import copy

import torch

from train.dictionary import Dictionary
from train.sparsity.gated import Gated
from train.sparsity.jumprelu import JumpReLU


@torch.no_grad()
def uncentered(dictionary: Dictionary) -> Dictionary:
    """A copy that reads its input as it is: `b_dec`, which was taken off it, is in the encoder's bias instead.

    Not for a Gated, whose magnitude has a bias of its own: `ungated` first.
    """
    assert dictionary.centered, "there is nothing to move"
    assert not isinstance(dictionary.sparsity, Gated), "its magnitude's bias would have to follow"
    found = copy.deepcopy(dictionary)
    found.b_enc.sub_(found.W_enc @ found.b_dec)
    found.centered = False
    return found


@torch.no_grad()
def ungated(dictionary: Dictionary) -> Dictionary:
    """A copy of a Gated as the JumpReLU it is (Rajamanoharan et al. 2024, arXiv 2404.16014).

    With `a` the encoder's product, the gate is open where `a > −b_enc`, that is where the magnitude
    `m = exp(r)·a + b_mag` exceeds `b_mag − exp(r)·b_enc`; a magnitude also has to be positive.
    """
    gated = dictionary.sparsity
    assert isinstance(gated, Gated), gated
    gain_F = gated.r_mag.exp()
    found = copy.deepcopy(dictionary)
    found.sparsity = JumpReLU(gated.l0, gated.latents).to(gain_F)
    found.sparsity.restore({"threshold": gated.b_mag - gain_F * dictionary.b_enc})
    found.W_enc.mul_(gain_F[:, None])
    found.b_enc.copy_(gated.b_mag)
    return found.train(dictionary.training)


@torch.no_grad()
def count_in_decoder_norms(dictionary: Dictionary) -> None:
    """Make every decoder row of unit norm, in place, and its latent larger by as much.

    σ then sees latents in units that can be compared, as a TopK with SAELens's `rescale_acts_by_decoder_norm` asks.
    """
    norms_F = dictionary.W_dec.norm(dim=1)
    dictionary.W_enc.mul_(norms_F[:, None])
    dictionary.b_enc.mul_(norms_F)
    dictionary.normalize_decoder()
