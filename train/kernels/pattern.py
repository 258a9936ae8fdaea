"""Active latents of a batch, as compressed rows or as a dense mask, and the products over them.

A training step needs three products (Gao et al. 2024, appendix D.2): latents into outputs (`product`), rows with
latents at active places only (`sampled`), and the transposed product that both have as their weight gradient. Each is
one embedding bag: the bag of a row holds its active latents, and the bag of a latent holds the rows it is active in.
PyTorch's embedding bag multiplies and sums as it gathers, so memory grows with N, never with N·D, and two CPU cores
run it at memory speed.
"""

from dataclasses import dataclass, replace
from functools import cache, cached_property
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class SparsePattern:
    """Compressed sparse rows: row b has latents `latents_N[offsets_B1[b]:offsets_B1[b+1]]`. Values are `(N,)`.

    `fires_N` says where a latent may be active, None: everywhere. At the other places the value is zero and only a
    surrogate gradient passes: they are left out of all sums (JumpReLU's kernel looks at far more latents than fire).
    """

    offsets_B1: Tensor
    latents_N: Tensor
    latents: int
    fires_N: Tensor | None = None

    @staticmethod
    def from_topk(indices_BK: Tensor, latents: int) -> "SparsePattern":
        rows, k = indices_BK.shape
        return SparsePattern(k * torch.arange(rows + 1, device=indices_BK.device), indices_BK.reshape(-1), latents)

    @staticmethod
    def from_flat(flat_N: Tensor, rows: int, latents: int) -> "SparsePattern":
        """From places in a flattened `(rows, latents)` matrix, in ascending order."""
        rows_N = flat_N // latents
        offsets_B1 = torch.searchsorted(rows_N, torch.arange(rows + 1, device=flat_N.device))
        return SparsePattern(offsets_B1, flat_N - rows_N * latents, latents)

    @property
    def rows(self) -> int:
        return len(self.offsets_B1) - 1

    @cached_property
    def rows_N(self) -> Tensor:
        """The row of each active latent."""
        counts_B = self.offsets_B1.diff()
        return torch.arange(self.rows, device=counts_B.device).repeat_interleave(
            counts_B, output_size=len(self.latents_N)
        )

    @cached_property
    def transposed(self) -> tuple["SparsePattern", Tensor]:
        """The same places by latent, and the permutation that takes values there."""
        # PyTorch sorts small integers by their digits, in a tenth of the time.
        small = torch.int16 if self.latents <= 2**15 else torch.int32
        latents_N, order_N = self.latents_N.to(small).sort(stable=True)
        edges = torch.arange(self.latents + 1, device=latents_N.device, dtype=torch.int32)
        return SparsePattern(torch.searchsorted(latents_N.int(), edges), self.rows_N[order_N], self.rows), order_N

    def _only(self, keep_N: Tensor) -> tuple["SparsePattern", Tensor]:
        """The places where `keep_N`, and their numbers among all."""
        kept_N = places(keep_N)
        offsets_B1 = F.pad(keep_N.cumsum(0), (1, 0))[self.offsets_B1]
        return SparsePattern(offsets_B1, self.latents_N[kept_N], self.latents), kept_N

    @cached_property
    def _firing(self) -> tuple["SparsePattern", Tensor]:
        assert self.fires_N is not None
        return self._only(self.fires_N)

    def firing(self, values_N: Tensor) -> tuple["SparsePattern", Tensor]:
        """The places where a latent may be active, and the values there."""
        if self.fires_N is None:
            return self, values_N
        pattern, kept_N = self._firing
        return pattern, values_N[kept_N]

    def pick(self, parameter_F: Tensor) -> Tensor:
        """A parameter of each latent, at the active places: `(N,)`."""
        return parameter_F[self.latents_N]

    def sampled(self, x_BD: Tensor, W_FD: Tensor) -> Tensor:
        """`<x_b, W_f>` at the places: `(N,)`; where no latent may be active no gradient comes back."""
        found: Tensor = _Sampled.apply(x_BD, W_FD, self)  # type: ignore[no-untyped-call]
        return found

    def product(self, values_N: Tensor, W_FD: Tensor) -> Tensor:
        """`Σ_f values_bf W_f`: `(B, D)`."""
        found: Tensor = _Product.apply(values_N, W_FD, self)  # type: ignore[no-untyped-call]
        return found

    def where(self, keep_N: Tensor, values_N: Tensor) -> tuple["SparsePattern", Tensor]:
        """Only the places where `keep_N`, and the values there."""
        kept, kept_N = self._only(keep_N)
        fires_N = None if self.fires_N is None else self.fires_N[kept_N]
        return replace(kept, fires_N=fires_N), values_N[kept_N]

    def count(self, active_N: Tensor) -> Tensor:
        """How many rows each latent is active in: `(F,)`."""
        return torch.zeros(self.latents, dtype=torch.int64, device=active_N.device).index_add_(
            0, self.latents_N, active_N.long()
        )

    def dense(self, values_N: Tensor) -> Tensor:
        out_BF = values_N.new_zeros(self.rows, self.latents)
        return out_BF.index_put((self.rows_N, self.latents_N), values_N)


@dataclass(frozen=True)
class DensePattern:
    """A mask, for batches where so many latents are active that dense products are faster.

    Values are `(B, F)`; what `pick` and `sampled` give is zero outside the mask, so nothing there can look active.
    """

    mask_BF: Tensor

    @property
    def latents(self) -> int:
        return self.mask_BF.shape[1]

    @property
    def rows(self) -> int:
        return len(self.mask_BF)

    def pick(self, parameter_F: Tensor) -> Tensor:
        return parameter_F * self.mask_BF

    def sampled(self, x_BD: Tensor, W_FD: Tensor) -> Tensor:
        return (x_BD @ W_FD.T) * self.mask_BF

    def product(self, values_BF: Tensor, W_FD: Tensor) -> Tensor:
        return (values_BF * self.mask_BF) @ W_FD

    def where(self, keep_BF: Tensor, values_BF: Tensor) -> tuple["DensePattern", Tensor]:
        return DensePattern(self.mask_BF & keep_BF), values_BF * keep_BF

    def count(self, active_BF: Tensor) -> Tensor:
        return (active_BF & self.mask_BF).sum(0)

    def dense(self, values_BF: Tensor) -> Tensor:
        return values_BF * self.mask_BF


Pattern = SparsePattern | DensePattern

DENSE_FROM = 1 / 5
"""Share of active latents from which dense products are faster (two CPU cores, from 64 x 512 to 768 x 16,384)."""


def pattern_of(mask_BF: Tensor) -> Pattern:
    """The pattern of a mask, sparse or dense, whichever computes faster."""
    flat_N = places(mask_BF)
    if len(flat_N) > DENSE_FROM * mask_BF.numel():
        return DensePattern(mask_BF)
    return SparsePattern.from_flat(flat_N, *mask_BF.shape)


def places(mask: Tensor) -> Tensor:
    """Where a mask is true, in the flattened matrix."""
    if mask.device.type == "cpu":
        # NumPy takes 5 ms where torch.nonzero takes 25 (2,048 x 16,384, 0.2% true).
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.view(-1).nonzero()[:, 0]


@cache
def _triton_products() -> ModuleType | None:
    """Kernels for a GPU, where Triton is installed: PyTorch's CUDA builds for Linux bring it."""
    try:
        from train.kernels import triton_products
    except ImportError:
        return None
    return triton_products


def _kernels(operand: Tensor) -> ModuleType | None:
    return _triton_products() if operand.is_cuda else None


def _product(pattern: SparsePattern, values_N: Tensor, W_FD: Tensor) -> Tensor:
    if (kernels := _kernels(W_FD)) is not None:
        return kernels.product(pattern.offsets_B1, pattern.latents_N, values_N, W_FD)  # type: ignore[no-any-return]
    return F.embedding_bag(
        pattern.latents_N, W_FD, pattern.offsets_B1, mode="sum", per_sample_weights=values_N, include_last_offset=True
    )


def _sampled(pattern: SparsePattern, x_BD: Tensor, W_FD: Tensor) -> Tensor:
    if (kernels := _kernels(W_FD)) is not None:
        return kernels.sampled(pattern.rows_N, pattern.latents_N, x_BD, W_FD)  # type: ignore[no-any-return]
    if pattern.rows >= pattern.latents:
        return _gathered(pattern, x_BD, W_FD)
    # Latent by latent it is the rows that are gathered: a batch stays in the cache, where the weights do not. Three
    # times as fast, and the same sums (2,048 x 768 rows, 16,384 latents).
    by_latent, order_N = pattern.transposed
    found_N = torch.empty(len(order_N), dtype=W_FD.dtype)
    found_N[order_N] = _gathered(by_latent, W_FD, x_BD)
    return found_N


def _gathered(pattern: SparsePattern, x_BD: Tensor, W_FD: Tensor) -> Tensor:
    # The gradient of an embedding bag with respect to its weights per sample is this product, exactly.
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(  # type: ignore[no-any-return]
        x_BD.contiguous(), W_FD.contiguous(), pattern.latents_N, pattern.offsets_B1[:-1], pattern.rows_N, 0
    )


def _transposed_product(pattern: SparsePattern, values_N: Tensor, x_BD: Tensor) -> Tensor:
    by_latent, order_N = pattern.transposed
    return _product(by_latent, values_N[order_N], x_BD.contiguous())


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values_N: Tensor, W_FD: Tensor, pattern: SparsePattern) -> Tensor:
        firing, firing_N = pattern.firing(values_N)
        ctx.save_for_backward(firing_N, W_FD)
        ctx.pattern, ctx.firing = pattern, firing
        return _product(firing, firing_N, W_FD)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, Tensor | None, None]:
        firing_N, W_FD = ctx.saved_tensors
        (gradient_BD,) = gradients
        values = _sampled(ctx.pattern, gradient_BD, W_FD) if ctx.needs_input_grad[0] else None
        W = _transposed_product(ctx.firing, firing_N, gradient_BD) if ctx.needs_input_grad[1] else None
        return values, W, None


class _Sampled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BD: Tensor, W_FD: Tensor, pattern: SparsePattern) -> Tensor:
        ctx.save_for_backward(x_BD, W_FD)
        ctx.pattern = pattern
        return _sampled(pattern, x_BD, W_FD)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, Tensor | None, None]:
        x_BD, W_FD = ctx.saved_tensors
        pattern, gradient_N = ctx.pattern.firing(gradients[0])
        x = _product(pattern, gradient_N, W_FD) if ctx.needs_input_grad[0] else None
        W = _transposed_product(pattern, gradient_N, x_BD) if ctx.needs_input_grad[1] else None
        return x, W, None
