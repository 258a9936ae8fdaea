"""Every way to keep latents few, by name. A new one is one file here and one line in the registry."""

from harvest.errors import UserError
from train.ranks import ALONE, Ranks
from train.sparsity.base import Sparsity
from train.sparsity.batchtopk import BatchTopK
from train.sparsity.gated import Gated
from train.sparsity.jumprelu import JumpReLU
from train.sparsity.relu import ReLU
from train.sparsity.topk import TopK

SPARSITIES: dict[str, type[Sparsity]] = {
    "relu": ReLU,
    "jumprelu": JumpReLU,
    "topk": TopK,
    "batchtopk": BatchTopK,
    "gated": Gated,
}


def make_sparsity(method: str, l0: float, latents: int, ranks: Ranks = ALONE) -> Sparsity:
    if method not in SPARSITIES:
        raise UserError(f"sparsity: {method}: no such method; there are {', '.join(SPARSITIES)}")
    sparsity = SPARSITIES[method](l0, latents)
    sparsity.ranks = ranks
    return sparsity


__all__ = ["SPARSITIES", "Sparsity", "make_sparsity"]
