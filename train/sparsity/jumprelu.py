"""JumpReLU (Rajamanoharan et al. 2024; arXiv 2512.05534, eq. 6)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from train.kernels import DensePattern, Pattern, pattern_of
from train.sparsity.base import Sparsity, above, less_rounding, start_threshold


class JumpReLU(Sparsity):
    """`z · H(z − θ)` with a threshold θ per latent, trained through a rectangle kernel of fixed bandwidth ε.

    The penalty is l0 itself; only θ gets its gradient, from pre-activations within ε/2 of the threshold.
    """

    architecture = "jumprelu"
    bandwidth: Tensor

    def __init__(self, l0: float, latents: int) -> None:
        super().__init__(l0, latents)
        self.log_threshold_F = nn.Parameter(torch.full((latents,), -3.0))
        self.register_buffer("bandwidth", torch.tensor(0.0))

    @property
    def threshold(self) -> Tensor:
        return self.log_threshold_F.exp()

    def select(self, z_BF: Tensor) -> Pattern:
        if not self.training:
            return pattern_of(above(z_BF, self.threshold))
        pattern = pattern_of(above(z_BF, (self.threshold - self.bandwidth / 2).clamp_min(0)))
        if isinstance(pattern, DensePattern):
            return pattern
        z_N = z_BF[pattern.rows_N, pattern.latents_N]
        return replace(pattern, fires_N=z_N > less_rounding(pattern.pick(self.threshold)))

    def activate(self, z_N: Tensor, bias_N: Tensor, pattern: Pattern) -> Tensor:
        values: Tensor = _Jump.apply(z_N, pattern.pick(self.threshold), self.bandwidth)  # type: ignore[no-untyped-call]
        return values

    def penalty(self, z_N: Tensor, values_N: Tensor, pattern: Pattern, decoder_norms_F: Tensor) -> Tensor:
        steps: Tensor = _Step.apply(z_N.detach(), pattern.pick(self.threshold), self.bandwidth)  # type: ignore[no-untyped-call]
        return steps.sum() / pattern.rows

    @torch.no_grad()
    def start(self, z_BF: Tensor) -> None:
        """Every threshold where l0 is twice the target; ε so wide that 16 times the target are near or above it.

        Wider, more latents learn at once; this wide, what is near the threshold still makes a sparse batch.
        """
        threshold = start_threshold(z_BF, 2 * self.l0, self.ranks)
        self.log_threshold_F.fill_(threshold.log())
        self.bandwidth.copy_(2 * (threshold - start_threshold(z_BF, 16 * self.l0, self.ranks)))

    def saved_tensors(self) -> dict[str, Tensor]:
        return {"threshold": self.threshold}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """A threshold below zero does what zero does: elsewhere a ReLU comes before the jump."""
        self.log_threshold_F.copy_(tensors["threshold"].clamp_min(0).log())

    @torch.no_grad()
    def rescale(self, factor: float) -> None:
        self.log_threshold_F.add_(torch.tensor(factor).log())
        self.bandwidth.mul_(factor)


def _kernel(z: Tensor, threshold: Tensor, bandwidth: Tensor) -> Tensor:
    return ((z - threshold).abs() < bandwidth / 2) / bandwidth.clamp_min(1e-12)


class _Jump(torch.autograd.Function):
    """`z·H(z − θ)`; the pseudo-derivative with respect to θ is `−θ·K((z − θ)/ε)/ε`."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: Tensor) -> Tensor:
        ctx.save_for_backward(z, threshold, bandwidth)
        return z * (z > threshold)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor, None]:
        z, threshold, bandwidth = ctx.saved_tensors
        return gradients[0] * (z > threshold), -gradients[0] * threshold * _kernel(z, threshold, bandwidth), None


class _Step(torch.autograd.Function):
    """`H(z − θ)`; the pseudo-derivative with respect to θ is `−K((z − θ)/ε)/ε`."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: Tensor) -> Tensor:
        ctx.save_for_backward(z, threshold, bandwidth)
        return (z > threshold).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[None, Tensor, None]:
        z, threshold, bandwidth = ctx.saved_tensors
        return None, -gradients[0] * _kernel(z, threshold, bandwidth), None
