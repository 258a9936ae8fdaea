"""What image and text towers share: their sites, found by a pass, and one embedding per image or text."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from harvest.models.capture import Site, run_until_captured
from harvest.models.sites import layer_sites

EMBED = {"token_embedding": "out", "embeddings": "out", "ln_pre": "in", "norm_pre": "in"}
"""Modules at whose ends the embedded tokens are: before the norm that CLIP has in front of its layers."""
FINAL = ("ln_final", "ln_post", "norm")
"""Last norms of models that are not from transformers."""


class Normalized(torch.nn.Module):
    """Vectors of unit L2 norm."""

    def forward(self, x_BD: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(x_BD, dim=-1)


class Tower(torch.nn.Module):
    """A model that ends in one embedding: its `body`, and two places where a hook sees that embedding.

    Its sites are named like those of a text model, and besides `pooled` and `pooled_normalized`, the embedding as it is
    and of unit L2 norm, `(B, width)`.
    """

    def __init__(self, body: torch.nn.Module) -> None:
        super().__init__()
        self.body = body
        self.pooled = torch.nn.Identity()
        self.pooled_normalized = Normalized()
        self._sites: list[Site] = []
        self.eval().requires_grad_(False)

    def named_sites(self) -> list[Site]:
        """All sites with a name of their own, in the order of the forward pass."""
        return self._sites

    def find_sites(self, inputs: Mapping[str, torch.Tensor], others: list[Site]) -> dict[str, torch.Tensor]:
        """Keep the sites that hold one vector per token in a pass over these two inputs; returns all that was seen,
        `others` too. A tower whose layers do not all see the same tokens keeps none but the embedding."""
        candidates = list(_candidates(self.body))
        seen = run_until_captured(self, [*candidates, *others], inputs)
        ends = [seen.get(site.name) for site in candidates if site.name.endswith(("resid_pre", "resid_post"))]
        shapes = {None if end is None else end.shape for end in ends}
        self._sites = [Site(name, name, "out") for name in ("pooled", "pooled_normalized")]
        shape = shapes.pop() if len(shapes) == 1 else None
        if shape is not None and len(shape) == 3 and shape[0] == 2:
            of_tokens = [site for site in candidates if site.name in seen and seen[site.name].shape[:-1] == shape[:-1]]
            whole = _adds_up(of_tokens, seen)
            kept = [site for site in of_tokens if whole or not site.name.endswith(("attn_out", "mlp_out"))]
            self._sites = [*kept, *self._sites]
        return seen


def _candidates(body: Any) -> Iterator[Site]:
    """Sites by the names of modules."""
    deepest_first = sorted(dict(body.named_modules()), key=lambda path: -path.count("."))
    paths = {path.rpartition(".")[2]: f"body.{path}" for path in deepest_first}
    if (name := next((name for name in EMBED if name in paths), None)) is not None:
        yield Site("embed", paths[name], EMBED[name])  # type: ignore[arg-type]
    if (stack := _layer_stack(body)) is not None:
        for index, layer in enumerate(body.get_submodule(stack).children()):
            yield from layer_sites(f"layers.{index}", f"body.{stack}.{index}", layer)
    if (base := getattr(body, "base_model", None)) is not None:
        path = next(path for path, module in body.named_modules() if module is base)
        yield Site("final", f"body.{path}".rstrip("."), "out")
    elif (name := next((name for name in FINAL if name in paths), None)) is not None:
        yield Site("final", paths[name], "out")


def _layer_stack(body: torch.nn.Module) -> str | None:
    """The path of the list of equal layers that has most of the weights; None where there is none."""
    stacks = {
        path: (sum(weight.numel() for weight in module.parameters()), len(module))
        for path, module in body.named_modules()
        if isinstance(module, torch.nn.ModuleList | torch.nn.Sequential)
        and len({type(layer) for layer in module.children()}) == 1
    }
    return max(stacks, key=lambda path: stacks[path], default=None)


def _adds_up(sites: list[Site], seen: Mapping[str, torch.Tensor]) -> bool:
    """Whether every layer adds what its attention and MLP give to the residual stream as it is: no scale, no norm."""
    names = {site.name for site in sites}
    if any(value.is_meta for value in seen.values()):
        return True  # there are no values to add up
    for layer in (name.removesuffix(".resid_post") for name in names if name.endswith(".resid_post")):
        if not {f"{layer}.attn_out", f"{layer}.mlp_out"} <= names:
            return False
        before, attention, mlp, after = (
            seen[f"{layer}.{part}"].double() for part in ("resid_pre", "attn_out", "mlp_out", "resid_post")
        )
        rounding = 4 * torch.finfo(seen[f"{layer}.resid_post"].dtype).eps * after.norm()
        if (before + attention + mlp - after).norm() > 0.05 * (attention + mlp).norm() + rounding:
            return False
    return True
