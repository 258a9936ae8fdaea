"""One dictionary in training: its weights, its optimizer, and everything a step needs to know or remembers."""

from typing import Any

import accelerate
import torch
from torch import Tensor

from harvest.errors import UserError
from harvest.store import Store
from train.anchors import Anchors
from train.batches import Batch
from train.config import DictionarySpec
from train.controller import PenaltyController
from train.dictionary import Dictionary
from train.objective import Objective, Outcome, Targets, keep_decoder_steps_on_sphere
from train.ranks import Ranks
from train.scaling import Scaling, unscale
from train.sparsity import make_sparsity


class Trainer:
    """Steps a dictionary over batches of a store. Its whole state is `state()`: a step is a function of it."""

    def __init__(
        self, spec: DictionarySpec, store: Store, accelerator: accelerate.Accelerator, anchors: Anchors | None = None
    ) -> None:
        self.spec, self.accelerator = spec, accelerator
        self.steps = max(1, spec.tokens // spec.batch)
        self.reads = [store.site(site) for site in spec.reads]
        self.writes = [store.site(site) for site in spec.written]
        device = accelerator.device
        self.ranks = Ranks(accelerator.process_index, accelerator.num_processes, spec.split)
        latents, left = divmod(spec.latents, self.ranks.latent_shares)
        if left:
            raise UserError(
                f"latents: {spec.latents} cannot be split equally over {self.ranks.world} processes; take a multiple"
            )
        self.rounded = bfloat16_is_fast(device)
        self.read_scaling = Scaling.of(store, self.reads).to(device)
        self.write_scaling = Scaling.of(store, self.writes).to(device)
        self.dictionary = Dictionary(
            len(self.read_scaling.mean),
            len(self.write_scaling.mean),
            make_sparsity(spec.method, spec.l0, latents, self.ranks),
            centered=self.reads == self.writes,
            skip=spec.skip,
        )
        self.dictionary.start(torch.Generator().manual_seed(spec.seed))
        self.dictionary.to(device)
        targets = None if anchors is None else self._targets(anchors)
        objective = Objective(self.dictionary, spec, [store.widths[site] for site in self.writes], targets)
        # eps far below 1e-8: the gradient of a latent that fires once in 10^5 rows is as small as that.
        optimizer = torch.optim.Adam(self.dictionary.parameters(), lr=spec.peak_learning_rate, eps=1e-12, fused=True)
        self.optimizer = accelerator.prepare(optimizer)
        # Where latents are split, gradients are whole as they are: nothing is to be averaged.
        self.objective = accelerator.prepare(objective) if self.ranks.latent_shares == 1 else objective
        self.started: dict[str, Tensor] = {}
        """Per parameter of σ, the value that every latent's had before the first step."""
        self.step = 0
        self.idle_F = torch.zeros(latents, dtype=torch.int64, device=device)
        self.controller = PenaltyController(spec.l0)

    def _targets(self, anchors: Anchors) -> Targets:
        """Those of this process's latents, in the units that training sees, of unit length there (eq. 24)."""
        device = self.accelerator.device
        read_KP = anchors.read.to(device) * self.read_scaling.scale
        written_KR = anchors.written.to(device) * self.write_scaling.scale
        first = self.dictionary.latents * self.ranks.latent_share
        own = slice(first, first + self.dictionary.latents)
        return Targets(torch.nn.functional.normalize(read_KP[own]), torch.nn.functional.normalize(written_KR[own]))

    @property
    def sites(self) -> list[str]:
        return [*self.reads, *self.writes]

    def train_on(self, batch: Batch) -> dict[str, Tensor]:
        """One step: forward, backward, Adam, unit-norm decoder. Returns what there is to log, on the device."""
        x_BP, y_BR = self.scaled(batch)
        if self.step == 0:
            self._start(x_BP)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.steps, self.spec.peak_learning_rate)
        outcome = self.objective(x_BP, y_BR, self.controller.weight(), self._dead(), self.rounded)
        self.optimizer.zero_grad()
        self.accelerator.backward(outcome.loss)
        keep_decoder_steps_on_sphere(self.dictionary)
        self.optimizer.step()
        self.dictionary.normalize_decoder()
        self.step += 1
        return self._count(outcome)

    def scaled(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What is read and what should be written, in the units that training sees."""
        device = self.accelerator.device
        x_BP = self.read_scaling(torch.cat([batch.sites[site].to(device) for site in self.reads], 1))
        if self.reads == self.writes:
            return x_BP, x_BP
        return x_BP, self.write_scaling(torch.cat([batch.sites[site].to(device) for site in self.writes], 1))

    def _start(self, x_BP: Tensor) -> None:
        """Let σ adapt to the first batch."""
        bias = self.dictionary.sparsity.start(self.dictionary.preactivations(x_BP))
        if bias is not None:
            self.dictionary.b_enc.data.add_(bias)
        self.started = {name: p.detach()[0].clone() for name, p in self.dictionary.sparsity.named_parameters()}

    def _dead(self) -> Tensor | None:
        """Latents that have not fired for `dead_after` rows, where the auxiliary loss asks for them."""
        if self.spec.auxk is None:
            return None
        dead_F = self.idle_F >= self.spec.auxk.dead_after
        return dead_F if bool(self.ranks.over_latents(dead_F.sum()) > 0) else None

    def _count(self, outcome: Outcome) -> dict[str, Tensor]:
        """Over all processes: who fired, mean active latents a row, mean loss terms. One message carries it all."""
        world = self.ranks.world
        own = {"loss": outcome.loss.detach(), **outcome.terms, "l0": outcome.active * world / self.spec.batch}
        if outcome.penalty is not None:
            own["unweighted"] = outcome.penalty
        means = torch.stack(list(own.values())) / world
        if self.ranks.latent_shares > 1:
            means, fired_F = self.ranks.sum(means), outcome.fired_F
        else:
            means, fired_F = self.ranks.sum(torch.cat([means, outcome.fired_F.to(means.dtype)])).tensor_split(
                [len(own)]
            )
        logged = dict(zip(own, means, strict=True))
        self.idle_F = torch.where(fired_F > 0, 0, self.idle_F + self.spec.batch)
        if (unweighted := logged.pop("unweighted", None)) is not None:
            self.controller.update(float(logged["l0"]), float(unweighted), float(logged["unexplained"]))
            logged["penalty_weight"] = torch.tensor(self.controller.weight())
        return logged

    def idle_share(self) -> Tensor:
        """Share of the latents that did not fire in the last step's rows."""
        return self._share_of_latents(self.idle_F > 0)

    def dead_share(self) -> Tensor:
        """Share of latents that have not fired for `dead_after` rows, or since the start where that is less."""
        return self._share_of_latents(self.idle_F >= min(self.spec.dead_after, self.step * self.spec.batch))

    def _share_of_latents(self, which_F: Tensor) -> Tensor:
        return self.ranks.over_latents(which_F.float().mean()) / self.ranks.latent_shares

    def state(self) -> dict[str, Tensor]:
        """Everything that later steps depend on, besides the step number; of the latents, what this process has."""
        tensors = {f"dictionary.{name}": value for name, value in self.dictionary.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
        tensors |= {f"started.{name}": value for name, value in self.started.items()}
        return {**tensors, "idle": self.idle_F, "controller": self.controller.state()}

    def restore(self, step: int, tensors: dict[str, Tensor]) -> None:
        self.step = step
        self.idle_F = tensors["idle"].to(self.accelerator.device)
        self.controller.restore(tensors["controller"])
        self.started = {
            name.removeprefix("started."): t.to(self.accelerator.device)
            for name, t in tensors.items()
            if name.startswith("started.")
        }
        self.dictionary.load_state_dict(
            {name.removeprefix("dictionary."): t for name, t in tensors.items() if name.startswith("dictionary.")}
        )
        moments: dict[int, dict[str, Any]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                moments.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})

    def finished(self) -> Dictionary:
        """The dictionary in the model's own units. The trainer is of no use afterwards.

        Where latents are split it stays on the device, from where `save` collects the parts.
        """
        unscale(self.dictionary, self.read_scaling, self.write_scaling)
        return self.dictionary.cpu() if self.ranks.latent_shares == 1 else self.dictionary


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over the first twentieth (at most 1,000 steps), linear decay to zero over the last fifth."""
    warmup = max(1, min(1000, steps // 20))
    decay = max(1, steps // 5)
    return peak * min(1.0, (step + 1) / warmup, (steps - step) / decay)


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether the processor multiplies bfloat16 matrices faster than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())
