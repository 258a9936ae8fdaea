"""The dictionary: encoder, sparsity, decoder."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train.kernels import Pattern, SparsePattern
from train.sparsity import Sparsity


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

    @property
    def latents(self) -> int:
        return len(self.W_dec)

    @torch.no_grad()
    def start(self, generator: torch.Generator) -> None:
        """Unit decoder rows in random directions; the encoder tied to them where it reads what is written."""
        self.W_dec.copy_(torch.randn(self.W_dec.shape, generator=generator))
        self.normalize_decoder()
        if self.centered:
            self.W_enc.copy_(self.W_dec)
        else:
            self.W_enc.copy_(torch.randn(self.W_enc.shape, generator=generator))
            self.W_enc.div_(self.W_enc.norm(dim=1, keepdim=True))

    @torch.no_grad()
    def normalize_decoder(self) -> None:
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12))

    def encode(self, x_BP: Tensor, rounded: bool = False) -> Codes:
        """Latents of a batch. `rounded`: look for the active ones in bfloat16; their values are exact all the same."""
        x_BP = x_BP - self.b_dec if self.centered else x_BP
        with torch.no_grad():
            z_BF = self.preactivations(x_BP, rounded)
            pattern = self.sparsity.select(z_BF)
        bias_N = pattern.pick(self.b_enc)
        z_N = pattern.sampled(x_BP, self.W_enc) + bias_N
        if isinstance(pattern, SparsePattern) and pattern.fires_N is not None:
            z_N = torch.where(pattern.fires_N, z_N, pattern.take(z_BF).to(z_N.dtype))
        return Codes(pattern, z_N, self.sparsity.activate(z_N, bias_N, pattern))

    def preactivations(self, x_BP: Tensor, rounded: bool = False) -> Tensor:
        """`W_enc x + b_enc`, `(B, F)`, of an input that is already centred."""
        if rounded:
            return torch.addmm(self.b_enc.bfloat16(), x_BP.bfloat16(), self.W_enc.bfloat16().T)
        return torch.addmm(self.b_enc, x_BP, self.W_enc.T)

    def decode(self, codes: Codes, x_BP: Tensor) -> Tensor:
        """The reconstruction `(B, R)`; the input is needed for a skip connection only."""
        return codes.pattern.product(codes.values_N, self.W_dec) + self.beside_latents(x_BP)

    def beside_latents(self, x_BP: Tensor) -> Tensor:
        """What the reconstruction has beside the latents: the bias, and the skip connection if there is one."""
        return self.b_dec if self.W_skip is None else self.b_dec + x_BP @ self.W_skip.T

    def forward(self, x_BP: Tensor) -> Tensor:
        return self.decode(self.encode(x_BP), x_BP)
