"""A vision transformer of three layers, small enough to run by hand, in the place of a loaded model."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from harvest.models.capture import Site

PIXELS, PATCH, WIDTH, POOLED = 16, 4, 12, 5
GRID = PIXELS // PATCH


class TinyTower(nn.Module):
    """Patches of 4 of 16 pixels, after a class token and a register or after nothing; `pooled` has width 5."""

    def __init__(self, has_cls: bool = True, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.has_cls, self.prefix = has_cls, 2 if has_cls else 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
            self.first = nn.Parameter(torch.randn(self.prefix, WIDTH))
            layer = {"nhead": 3, "dim_feedforward": 16, "batch_first": True, "dropout": 0.0}
            self.layers = nn.ModuleList(nn.TransformerEncoderLayer(WIDTH, **layer) for _ in range(3))
            self.head = nn.Linear(WIDTH, POOLED)
        self.eval().requires_grad_(False).to(dtype)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x_BTD = self.embed(pixel_values).flatten(2).transpose(1, 2)
        x_BTD = torch.cat([self.first.expand(len(x_BTD), -1, -1), x_BTD], 1)
        for layer in self.layers:
            x_BTD = layer(x_BTD)
        return self.head(x_BTD.mean(1))

    def named_sites(self) -> list[Site]:
        return [
            *(Site(f"layers.{i}.resid_post", f"layers.{i}", "out") for i in range(3)),
            Site("pooled", "head", "out"),
        ]

    def preprocess(self, image: Image.Image) -> Tensor:
        assert image.mode == "RGB"
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        seen = image.crop((left, top, left + side, top + side)).resize((PIXELS, PIXELS), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(seen)).permute(2, 0, 1).float() / 127.5 - 1
