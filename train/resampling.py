"""Dead latents begin anew: neuron resampling (Bricken et al. 2023, "Towards Monosemanticity", appendix).

Shapes: N rows whose loss is measured, X latents that begin anew; others as in `train.dictionary`.
"""

from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast
from torch import Tensor
from torch.nn.functional import normalize

from harvest.store import Store, to_torch
from train.batches import Batch
from train.config import DictionarySpec
from train.trainer import Trainer

INPUT_BATCHES = 100
"""The loss is measured on this many batches: 819,200 rows are 100 of the paper's."""

ENCODER_NORM = 0.2
"""A new encoder row's norm, in units of the live rows' mean: the paper's, and right where latents compete too.

With a TopK of 2,048 latents and l0 32 on SmolLM2's MLP output, 121 new latents of 0.2 raised the loss by 10% at once;
of 0.5, 2.6-fold, and of 1, 9.6-fold, and the run ended with a higher loss.
"""


class Resampling:
    """Resamples a trainer's dead latents when it is time to.

    Who is dead, what is drawn and what comes of it are functions of the trainer's state, its seed and its step, the
    same in every process. `rows`: the store's first rows, which training may see.
    """

    def __init__(self, trainer: Trainer, store: Store, rows: int) -> None:
        self.trainer, self.store, self.rows = trainer, store, rows

    def after_step(self) -> dict[str, Any] | None:
        """To be called after every step, by every process. Returns what was done, if latents were resampled.

        `resampled` latents, the numbers `latents`, each from one of `rows`, which are numbers of the store's; and the
        mean loss of the `inputs` rows that those were drawn from, before and after.
        """
        trainer, spec = self.trainer, self.trainer.spec
        if spec.resample is None or not is_due(spec, trainer.step):
            return None
        own_F = trainer.idle_F >= spec.resample.dead_after
        dead_F = trainer.ranks.stack(own_F.int()).view(-1) if trainer.ranks.latent_shares > 1 else own_F
        latents_X = dead_F.nonzero()[:, 0]
        latents_X = latents_X[latents_X >= (spec.anchors.count if spec.anchors else 0)]
        if len(latents_X) == 0:
            return None
        rng = np.random.default_rng([spec.seed, trainer.step])
        chunks = self._draw_chunks(rng, spec.resample.inputs or INPUT_BATCHES * spec.batch)
        rows_N = _rows_of(chunks, self.store.layout.chunk_rows, self.rows)
        before_N = self._losses(chunks)
        latents_X = latents_X[: np.count_nonzero(before_N)]
        drawn_X = torch.from_numpy(rows_N[draw(before_N, len(latents_X), rng)]).to(latents_X.device)
        rows_X = broadcast(drawn_X).cpu().numpy()  # the first process's, should two round differently
        begin_anew(trainer, latents_X, ~own_F, *trainer.scaled(self._read(rows_X)))
        return {
            "step": trainer.step,
            "tokens": trainer.step * spec.batch,
            "resampled": len(latents_X),
            "inputs": len(rows_N),
            "loss_before": float(before_N.mean()),
            "loss_after": float(self._losses(chunks).mean()),
            "latents": latents_X.tolist(),
            "rows": rows_X.tolist(),
        }

    def _draw_chunks(self, rng: np.random.Generator, rows: int) -> np.ndarray:
        """As many of the store's chunks as make this many rows, or all that training may see, in ascending order."""
        size = self.store.layout.chunk_rows
        return np.sort(rng.permutation(-(-self.rows // size))[: -(-rows // size)])

    @torch.no_grad()
    def _losses(self, chunks: np.ndarray) -> np.ndarray:
        """Each row's squared error, in units of the variance, `(N,)` float64; processes share out the chunks.

        As at inference, where no σ looks at other rows: a row's loss does not depend on which are computed together.
        The paper's loss has an L1 penalty beside the error; a new latent can lower the error only, and every σ has it.
        """
        trainer, ranks, size = self.trainer, self.trainer.ranks, self.store.layout.chunk_rows
        together = max(1, trainer.spec.batch // ranks.row_shares // size)
        loss_N = torch.zeros(len(_rows_of(chunks, size, self.rows)), device=trainer.accelerator.device)
        trainer.dictionary.eval()
        for begin in range(ranks.row_share * together, len(chunks), ranks.row_shares * together):
            batch = self._read_chunks(chunks[begin : begin + together])
            x_BP, y_BR = trainer.scaled(batch)
            output_BR = trainer.dictionary.decode(trainer.dictionary.encode(x_BP, trainer.rounded), x_BP)
            loss_N[begin * size :][: len(batch.rows)] = (output_BR - y_BR).square().mean(1)
        trainer.dictionary.train()
        return (ranks.sum(loss_N) if ranks.row_shares > 1 else loss_N).double().cpu().numpy()

    def _read_chunks(self, chunks: np.ndarray) -> Batch:
        size = self.store.layout.chunk_rows
        spans = [(int(chunk) * size, min((int(chunk) + 1) * size, self.rows)) for chunk in chunks]
        sites = {site: torch.cat([self.store.read(site, *span) for span in spans]) for site in self.trainer.sites}
        return Batch(sites, _rows_of(chunks, size, self.rows))

    def _read(self, rows_X: np.ndarray) -> Batch:
        """Rows by number, in any order."""
        arrays = {site: self.store.array(f"sites/{site}") for site in self.trainer.sites}
        sites = {site: to_torch(np.asarray(a.oindex[rows_X, :]), self.store.dtype) for site, a in arrays.items()}
        return Batch(sites, rows_X)


def is_due(spec: DictionarySpec, step: int) -> bool:
    """Whether latents are resampled after this many steps: every `resample.every` rows, until `resample.until`."""
    if spec.resample is None:
        return False
    every = spec.resample.every
    times = step * spec.batch // every
    return times > (step - 1) * spec.batch // every and times * every <= spec.resample_until


def draw(loss_N: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` places, drawn with probabilities proportional to the squared loss.

    None twice: two latents that begin as the same input would be the same for good. It matters where few rows have most
    of the loss: of SmolLM2's residual stream, 59 in 250,000 have 72% of the variance.
    """
    weights_N = loss_N**2
    return rng.choice(len(weights_N), count, replace=False, p=weights_N / weights_N.sum())


@torch.no_grad()
def begin_anew(trainer: Trainer, latents_X: Tensor, live_F: Tensor, x_XP: Tensor, y_XR: Tensor) -> None:
    """Give each of these latents an input of its own; all other latents stay as they are, to the bit.

    The encoder's row is the input as the encoder sees it, with 0.2 of the live rows' mean norm. The decoder's is what
    latents should give for that input, of unit norm: for an SAE the same direction, the input less `b_dec`; for a
    transcoder the input's target less what the output has beside latents. Bias, σ's own parameters and Adam's moments
    are as at the start. `latents_X` are numbers among all latents, `live_F` says who lives of this process's.
    """
    dictionary, ranks = trainer.dictionary, trainer.ranks
    norms_F = dictionary.W_enc.norm(dim=1)
    live_F = live_F if ranks.over_latents(live_F.sum()) > 0 else torch.ones_like(live_F)
    mean = ranks.over_latents((norms_F * live_F).sum()) / ranks.over_latents(live_F.sum())
    places_X = latents_X - dictionary.latents * ranks.latent_share
    own_X = (places_X >= 0) & (places_X < dictionary.latents)
    places_X, x_XP, y_XR = places_X[own_X], x_XP[own_X], y_XR[own_X]
    dictionary.W_enc[places_X] = ENCODER_NORM * mean * normalize(dictionary.centre(x_XP))
    dictionary.W_dec[places_X] = normalize(y_XR - dictionary.beside_latents(x_XP))
    dictionary.b_enc[places_X] = 0
    for name, parameter in dictionary.sparsity.named_parameters():
        parameter[places_X] = trainer.started[name]
    for parameter in (dictionary.W_enc, dictionary.W_dec, dictionary.b_enc, *dictionary.sparsity.parameters()):
        for moment in ("exp_avg", "exp_avg_sq"):
            trainer.optimizer.state[parameter][moment][places_X] = 0


def _rows_of(chunks: np.ndarray, size: int, rows: int) -> np.ndarray:
    numbers = (chunks[:, None] * size + np.arange(size)).reshape(-1)
    return numbers[numbers < rows]
