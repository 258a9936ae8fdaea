"""What training minimises: eq. 3 and 25 of arXiv 2512.05534 with every method's own terms."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train.config import DictionarySpec
from train.dictionary import Codes, Dictionary
from train.kernels import SparsePattern
from train.nested import nested_reconstructions
from train.ranks import Ranks
from train.sparsity.topk import candidates, keep_largest


@dataclass(frozen=True)
class Targets:
    """Anchor directions of the first k latents, in the units that training sees: `(k, P)` and `(k, R)`, unit rows."""

    read_KP: Tensor
    written_KR: Tensor


@dataclass(frozen=True)
class Outcome:
    """One step's loss, its terms, the penalty before its weight, and which latents fired how often in these rows."""

    loss: Tensor
    terms: dict[str, Tensor]
    penalty: Tensor | None
    fired_F: Tensor
    active: Tensor


class Objective(nn.Module):
    """All loss terms in one `forward`, so that a wrapper such as DistributedDataParallel sees every use of a weight.

    Inputs have a variance of 1 per dimension, so the reconstruction term is the fraction of variance unexplained.
    """

    def __init__(
        self, dictionary: Dictionary, spec: DictionarySpec, widths: list[int], anchors: Targets | None
    ) -> None:
        super().__init__()
        self.dictionary, self.spec, self.widths, self.anchors = dictionary, spec, widths, anchors

    def forward(
        self, x_BP: Tensor, y_BR: Tensor, penalty_weight: float, dead_F: Tensor | None, rounded: bool
    ) -> Outcome:
        terms, codes, error_BR = self.terms(x_BP, y_BR, dead_F, rounded)
        penalty = terms.get("penalty")
        if penalty is not None:
            terms["penalty"] = penalty_weight * penalty
        active_N = codes.values_N.detach() > 0
        return Outcome(
            torch.stack(list(terms.values())).sum(),
            {name: term.detach() for name, term in terms.items()} | {"unexplained": mean_square(error_BR.detach())},
            None if penalty is None else penalty.detach(),
            codes.pattern.count(active_N),
            active_N.sum(),
        )

    def terms(
        self, x_BP: Tensor, y_BR: Tensor, dead_F: Tensor | None, rounded: bool
    ) -> tuple[dict[str, Tensor], Codes, Tensor]:
        """Every term by name (the penalty before its weight), the latents, and the error of the reconstruction."""
        dictionary, spec = self.dictionary, self.spec
        over_latents = dictionary.ranks.over_latents
        codes = dictionary.encode(x_BP, rounded)
        rest_BR = dictionary.beside_latents(x_BP) - y_BR
        if spec.matryoshka is None:
            errors = [over_latents(codes.pattern.product(codes.values_N, dictionary.W_dec)) + rest_BR]
        else:
            errors = [part + rest_BR for part in nested_reconstructions(dictionary, codes, spec.matryoshka, spec.l0)]
        terms = {"reconstruction": torch.stack([mean_square(error) for error in errors]).mean()}
        norms_F = decoder_norms(dictionary, self.widths)
        penalty = dictionary.sparsity.penalty(codes.z_N, codes.values_N, codes.pattern, norms_F)
        if penalty is not None:
            terms["penalty"] = over_latents(penalty)
        if (open_N := dictionary.sparsity.gate(codes.z_N)) is not None:
            gated_BR = over_latents(codes.pattern.product(open_N, dictionary.W_dec.detach()))
            terms["gate"] = mean_square(gated_BR + dictionary.b_dec.detach() - y_BR)
        if dead_F is not None and spec.auxk is not None:
            missed = dead_latent_loss(dictionary, x_BP, errors[-1].detach(), dead_F, rounded)
            terms["auxk"] = spec.auxk.weight * missed
        if self.anchors is not None and spec.anchors is not None:
            terms["anchors"] = spec.anchors.weight * over_latents(anchor_loss(dictionary, self.anchors))
        return terms, codes, errors[-1]


def mean_square(error_BR: Tensor) -> Tensor:
    return error_BR.square().mean()


def decoder_norms(dictionary: Dictionary, widths: list[int]) -> Tensor:
    """Σ over written sites of a latent's decoder norm there, `(F,)`: the crosscoder's L1 (Lindsey et al. 2024)."""
    if len(widths) == 1:
        return torch.ones(dictionary.latents, device=dictionary.W_dec.device)  # rows are kept at unit norm
    return torch.stack([part.norm(dim=1) for part in torch.split(dictionary.W_dec, widths, dim=1)]).sum(0)


def anchor_loss(dictionary: Dictionary, anchors: Targets) -> Tensor:
    """`‖W_E[1:k] − w̃_p‖² + ‖W_D[:,1:k] − w̃_r‖²` (arXiv 2512.05534, eq. 26)."""
    k = len(anchors.read_KP)
    encoder = (dictionary.W_enc[:k] - anchors.read_KP).square().sum()
    return encoder + (dictionary.W_dec[:k] - anchors.written_KR).square().sum()


def dead_latent_loss(dictionary: Dictionary, x_BP: Tensor, error_BR: Tensor, dead_F: Tensor, rounded: bool) -> Tensor:
    """AuxK (Gao et al. 2024, appendix A.2): the strongest dead latents reconstruct the (detached) residual.

    `k_aux = min(R/2, dead)` latents a row, decoded without bias, in units of the residual's own variance over all
    processes' rows, scaled by `min(dead / (R/2), 1)` so that a few dead latents are not forced to explain everything;
    not finite counts as 0. The mean over processes is the loss of the whole batch.
    """
    ranks = dictionary.ranks
    dead = dead_F.nonzero()[:, 0]
    count = int(ranks.over_latents(dead_F.sum()))
    most = max(1, error_BR.shape[1] // 2)
    k = min(most, count)
    x_BP = dictionary.centre(x_BP)
    with torch.no_grad():
        found = candidates(dictionary.preactivations(x_BP, rounded)[:, dead], k, ranks)
    pattern = SparsePattern(found.offsets_B1, dead[found.latents_N], dictionary.latents)
    z_N = pattern.sampled(x_BP, dictionary.W_enc) + pattern.pick(dictionary.b_enc)
    values_N = keep_largest(torch.relu(z_N), pattern, k, ranks)
    residual_BR = -error_BR
    missed = (ranks.over_latents(pattern.product(values_N, dictionary.W_dec)) - residual_BR).square().sum()
    missed = missed * (ranks.row_shares * min(count / most, 1.0))
    return (missed / spread(residual_BR, ranks)).nan_to_num(0.0, 0.0, 0.0)


def spread(x_BD: Tensor, ranks: Ranks) -> Tensor:
    """`Σ_b ‖x_b − x̄‖²` over all processes' rows, from each one's own mean and spread (Chan et al. 1979)."""
    mean_D = x_BD.mean(0)
    own_D = torch.cat([mean_D, (x_BD - mean_D).square().sum()[None]])
    each_WD = ranks.stack(own_D) if ranks.row_shares > 1 else own_D[None]
    means_WD, within_W = each_WD[:, :-1], each_WD[:, -1]
    return within_W.sum() + len(x_BD) * (means_WD - means_WD.mean(0)).square().sum()


@torch.no_grad()
def keep_decoder_steps_on_sphere(dictionary: Dictionary) -> None:
    """Take off the part of the decoder's gradient along each row: Adam's step then does not fight the unit norm."""
    W_dec, gradient = dictionary.W_dec, dictionary.W_dec.grad
    assert gradient is not None
    along_F = torch.linalg.vecdot(gradient, W_dec)
    gradient.addcmul_(W_dec, along_F[:, None], value=-1)
