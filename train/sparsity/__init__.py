"""Every way to keep latents few, by name. A new one is one file here and one line in the registry."""

from harvest.errors import UserError
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


def make_sparsity(method: str, l0: float, latents: int) -> Sparsity:
    if method not in SPARSITIES:
        raise UserError(f"sparsity: {method}: no such method; there are {', '.join(SPARSITIES)}")
    return SPARSITIES[method](l0, latents)


__all__ = ["SPARSITIES", "Sparsity", "make_sparsity"]
