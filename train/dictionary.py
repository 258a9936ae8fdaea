"""The dictionary: encoder, sparsity, decoder."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train.kernels import Pattern
from train.ranks import Ranks
from train.row_norms import ROW_NORMS
from train.sparsity import Sparsity

PIECE = 1024
"""Latents that are drawn at a time."""


@dataclass(frozen=True)
class Codes:
    """The latents of a batch: where they may be active, their exact pre-activations there, and their values."""

    pattern: Pattern
    z_N: Tensor
    values_N: Tensor

    def dense(self) -> Tensor:
        """`(B, F)`."""
        return self.pattern.dense(self.values_N)

    def l0(self) -> Tensor:
        """Mean number of active latents per row."""
        return (self.values_N > 0).sum() / self.pattern.rows


class Dictionary(nn.Module):
    """`x_q = σ(W_enc (x_p − b_dec) + b_enc)`, `x̂_r = x_q W_dec + b_dec (+ W_skip x_p)`: arXiv 2512.05534, eq. 1 and 2.

    `b_dec` is taken off the input only where a dictionary writes what it reads (`centered`). Reading or writing several
    sites means their concatenation, in the order given. Weights have a row a latent: W_enc `(F, P)`, W_dec `(F, R)`.

    With `row_norm`, both equations are of rows in units of their own, and x̂_r is put back into the model's.

    Where processes split the latents (`ranks`), each has F of them; what it takes and gives is of the whole dictionary.
    """

    def __init__(self, read: int, written: int, sparsity: Sparsity, centered: bool, skip: bool = False) -> None:
        super().__init__()
        latents = sparsity.latents
        self.W_enc = nn.Parameter(torch.zeros(latents, read))
        self.b_enc = nn.Parameter(torch.zeros(latents))
        self.W_dec = nn.Parameter(torch.zeros(latents, written))
        self.b_dec = nn.Parameter(torch.zeros(written))
        self.W_skip = nn.Parameter(torch.zeros(written, read)) if skip else None
        self.sparsity = sparsity
        self.centered = centered
        self.row_norm: str | None = None
        """One of `ROW_NORMS`, in a dictionary from elsewhere."""

    @property
    def ranks(self) -> Ranks:
        return self.sparsity.ranks

    @property
    def latents(self) -> int:
        return len(self.W_dec)

    @torch.no_grad()
    def start(self, generator: torch.Generator) -> None:
        """Unit decoder rows in random directions; the encoder tied to them where it reads what is written."""
        self._draw(self.W_dec, generator)
        self.normalize_decoder()
        if self.centered:
            self.W_enc.copy_(self.W_dec)
        else:
            self._draw(self.W_enc, generator)
            self.W_enc.div_(self.W_enc.norm(dim=1, keepdim=True))

    def _draw(self, W_FD: Tensor, generator: torch.Generator) -> None:
        """Normal numbers, the same ones for a latent whichever process has it; memory for a few at a time."""
        own = range(self.latents * self.ranks.latent_share, self.latents * (self.ranks.latent_share + 1))
        for first in range(0, self.latents * self.ranks.latent_shares, PIECE):
            last = min(first + PIECE, self.latents * self.ranks.latent_shares)
            drawn = torch.randn(last - first, W_FD.shape[1], generator=generator)
            mine = range(max(first, own.start), min(last, own.stop))
            if mine:
                W_FD[mine.start - own.start : mine.stop - own.start] = drawn[mine.start - first : mine.stop - first]

    @torch.no_grad()
    def normalize_decoder(self) -> None:
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12))

    def encode(self, x_BP: Tensor, rounded: bool = False) -> Codes:
        """Latents of a batch. `rounded`: look for the active ones in bfloat16; their values are exact all the same."""
        x_BP = self.centre(x_BP)
        with torch.no_grad():
            pattern = self.sparsity.select(self.preactivations(x_BP, rounded))
        bias_N = pattern.pick(self.b_enc)
        z_N = pattern.sampled(x_BP, self.W_enc) + bias_N
        return Codes(pattern, z_N, self.sparsity.activate(z_N, bias_N, pattern))

    def centre(self, x_BP: Tensor) -> Tensor:
        """The input as the encoder takes it."""
        if self.row_norm is not None:
            x_BP, _, _ = ROW_NORMS[self.row_norm](x_BP)
        return self.ranks.to_latents(x_BP - self.b_dec) if self.centered else x_BP

    def preactivations(self, x_BP: Tensor, rounded: bool = False) -> Tensor:
        """`W_enc x + b_enc`, `(B, F)`, of an input that is already centred."""
        if rounded:
            return torch.addmm(self.b_enc.bfloat16(), x_BP.bfloat16(), self.W_enc.bfloat16().T)
        return torch.addmm(self.b_enc, x_BP, self.W_enc.T)

    def decode(self, codes: Codes, x_BP: Tensor) -> Tensor:
        """The reconstruction `(B, R)`; the input is needed for a skip connection or a row's own units only."""
        y_BR = self.ranks.over_latents(codes.pattern.product(codes.values_N, self.W_dec)) + self.beside_latents(x_BP)
        if self.row_norm is None:
            return y_BR
        _, shift_B1, scale_B1 = ROW_NORMS[self.row_norm](x_BP)
        return y_BR * scale_B1 + shift_B1

    def beside_latents(self, x_BP: Tensor) -> Tensor:
        """What the reconstruction has beside the latents: the bias, and the skip connection if there is one."""
        return self.b_dec if self.W_skip is None else self.b_dec + x_BP @ self.W_skip.T

    def forward(self, x_BP: Tensor) -> Tensor:
        return self.decode(self.encode(x_BP), x_BP)
