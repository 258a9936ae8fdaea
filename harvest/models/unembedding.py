"""How a text model reads its residual stream as tokens: the final norm and the output embedding."""

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harvest.config import ModelSpec
from harvest.models.capture import Site, run_until_captured, text_inputs
from harvest.models.load import import_transformers, load_config, load_weights, one_line_errors
from harvest.models.sites import named_sites

RESIDUAL = re.compile(r"(layers|blocks)\.(\d+)\.(hook_)?(resid_pre|resid_mid|resid_post|attn_out|mlp_out)")
"""Where a layer's residual stream is written, by our names or TransformerLens's. What goes into an MLP is normed first,
and inside of modules there are other spaces, even where they are as wide."""
EMBEDDINGS = ("embed", "hook_embed")
FINAL = "final"


class NoLens(Exception):  # noqa: N818
    """Why nothing can be read as tokens at a site; no error."""


@dataclass(frozen=True)
class Unembedding:
    """Directions in the residual stream -> logits. V tokens, D width."""

    weight_VD: Tensor
    """The output embedding, in float32."""
    gain_D: Tensor | None
    """The final norm's weight; None where no norm comes between."""
    centred: bool
    """Whether the norm takes off the mean first, as LayerNorm does."""

    def fold(self, x_ND: Tensor) -> Tensor:
        """Directions as the output embedding sees them, `(N, D)`; `fold(x) @ weight_VD.T` are their logits.

        A norm divides by the length of the whole stream, which depends on what else is in it, and adds a bias, which is
        the same for all: neither says anything of a direction and both are left out. So is the bias of the output.
        """
        if self.gain_D is None:
            return x_ND
        return (x_ND - x_ND.mean(1, keepdim=True) if self.centred else x_ND) * self.gain_D


def read_unembedding(spec: ModelSpec, site: str, device: torch.device | str) -> Unembedding:
    """What the model makes of directions that are written at `site`, by its stored name.

    Norm and embedding are found by what they do in a pass over a few tokens, whatever the architecture calls them.
    Raises `NoLens` where the site is not in the residual stream, or the model has no output embedding that reads that.
    """
    if not (RESIDUAL.fullmatch(site) or site in (*EMBEDDINGS, FINAL)):
        raise NoLens(f"{site} is no place where the residual stream is written")
    model = load_causal(spec, device)
    head = model.get_output_embeddings()
    head_path = next((path for path, module in model.named_modules() if module is head), None)
    if head_path is None or not head.weight.is_floating_point() or head.weight.is_meta:
        raise NoLens(f"the model {spec.id} has no output embedding that can be read")
    sites = {site.name: site for site in named_sites(model)}
    seen = _run(spec, model, head_path, sites, site)
    norm = _final_norm(model, head_path, seen)
    factor = getattr(model.config.get_text_config(), "residual_multiplier", 1.0)
    if not _is_added(seen, factor, torch.finfo(model.dtype).eps):
        raise NoLens(f"{site} is not added to the residual stream as it is")
    weight_VD = head.weight.detach().float()
    if norm is None or site == FINAL:  # what is `final` is normed already
        return Unembedding(weight_VD, None, centred=False)
    gain_D, centred = _probe(norm, weight_VD.shape[1])
    return Unembedding(weight_VD, gain_D.to(weight_VD.device), centred)


def load_causal(spec: ModelSpec, device: torch.device | str) -> Any:
    """The whole model, which predicts a token from those before it. Raises `NoLens` where it is of another kind."""
    if spec.backend == "open_clip":
        raise NoLens(f"the model {spec.id} has no output embedding: it is an open_clip model")
    transformers, config = import_transformers(), load_config(spec)
    if "AutoModelForCausalLM" not in (getattr(config, "auto_map", None) or {}):
        causal = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
        name = causal[type(config)].__name__ if type(config) in causal else None
        if name is None or name not in (config.architectures or [name]):
            what = (config.architectures or [config.model_type])[0]
            raise NoLens(f"the model {spec.id} has no output embedding: it is a {what}")
    return load_weights(spec, device, transformers.AutoModelForCausalLM)


def _run(spec: ModelSpec, model: Any, head: str, sites: Mapping[str, Site], site: str) -> dict[str, Tensor]:
    """What goes into the head and in and out of everything outside the layers, what the last layer gives (`left`), and
    the parts of the layer that `site` is a part of, if it is: `resid_pre`, `attn_out`, `mlp_out`, `resid_post`."""
    layers = [name for name in sites if name.endswith(".resid_post")]
    if not layers:
        raise NoLens("the model's layers are not known")
    last = sites[layers[-1]]
    stack = last.path.rpartition(".")[0]
    wanted = [Site("left", last.path, last.side)]
    for path, module in model.named_modules():
        if path == head or (not path.startswith(f"{stack}.") and not list(module.children())):
            wanted += [Site(f"{path}:in", path, "in"), Site(f"{path}:out", path, "out")]
    if (match := RESIDUAL.fullmatch(site)) and match[4] in ("attn_out", "mlp_out"):
        for part in ("resid_pre", "attn_out", "mlp_out", "resid_post"):
            if (found := sites.get(f"layers.{match[2]}.{part}")) is not None:
                wanted.append(Site(part, found.path, found.side))
    ids_BT = torch.arange(22).view(2, 11) % model.config.get_text_config().vocab_size
    with one_line_errors(f"model {spec.id}: cannot be run", spec):
        seen = run_until_captured(model, wanted, text_inputs(model, ids_BT, torch.ones_like(ids_BT)))
    if "left" not in seen or f"{head}:in" not in seen:
        raise NoLens(f"the model {spec.id} gives nothing that can be read after its layers")
    seen["given"] = seen[f"{head}:in"]
    return {name: value.float().cpu() for name, value in seen.items() if value.is_floating_point()}


def _final_norm(model: Any, head: str, seen: Mapping[str, Tensor]) -> torch.nn.Module | None:
    """The module that turns what the last layer gives into what the head reads; None where these are the same."""
    if torch.equal(seen["left"], seen["given"]):
        return None
    for path, module in model.named_modules():
        around = (seen.get(f"{path}:in"), seen.get(f"{path}:out"))
        if path != head and all(map(_same, around, (seen["left"], seen["given"]))):
            assert isinstance(module, torch.nn.Module)
            return module
    raise NoLens("between the model's last layer and its output embedding there is more than a norm")


def _same(found: Tensor | None, wanted: Tensor) -> bool:
    return found is not None and torch.equal(found, wanted)


def _is_added(seen: Mapping[str, Tensor], factor: float, eps: float) -> bool:
    """Whether attention and MLP add what comes out of them: some models norm it before (Gemma 2). True where a layer's
    parts were not asked for, or cannot be told apart."""
    parts = ("resid_pre", "resid_post", "attn_out", "mlp_out")
    if not all(part in seen for part in parts):
        return True
    before, after, attention, mlp = (seen[part].reshape(seen["resid_pre"].shape) for part in parts)
    error = (after - before - factor * (attention + mlp)).abs()
    rounding = 2 * eps * (before.abs() + after.abs() + attention.abs() + mlp.abs())
    return float((error <= rounding).float().mean()) > 0.99


def _probe(norm: torch.nn.Module, width: int) -> tuple[Tensor, bool]:
    """The gain of a LayerNorm or RMSNorm, and whether it centres, from what it does: how a class names its weight, and
    whether one is added to it, is its own affair."""
    norm = copy.deepcopy(norm).float().cpu()

    def without_bias(x_D: Tensor) -> Tensor:
        with torch.inference_mode():
            applied: Tensor = norm(torch.stack([x_D, torch.zeros(width)])[None])[0]
        return applied[0] - applied[1]

    # No mean, and no entry near zero; so long that what a norm adds to the length does not matter.
    ups = -(-width // 2)
    x_D = torch.cat([torch.full((ups,), 1 / ups), torch.full((width - ups,), -1 / (width - ups))])
    x_D *= 1000 / x_D.square().mean().sqrt()
    gain_D = without_bias(x_D) * 1000 / x_D
    centred = bool(without_bias(torch.full((width,), 1000.0)).abs().max() < 0.01 * gain_D.abs().max())
    y_D = 1000 * torch.randn(width, generator=torch.Generator().manual_seed(0))
    folded_D = (y_D - y_D.mean() if centred else y_D) * gain_D
    scale = (y_D.std(correction=0) if centred else y_D.square().mean().sqrt()).clamp_min(1e-9)
    if not torch.allclose(without_bias(y_D), folded_D / scale, rtol=1e-3, atol=1e-3 * float(gain_D.abs().max())):
        raise NoLens("the model's final norm is neither a LayerNorm nor an RMSNorm")
    return gain_D, centred
