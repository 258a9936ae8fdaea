"""Site names and the modules they stand for, for any text model with a stack of layers."""

import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import torch

from harvest.errors import UserError
from harvest.models.capture import Site, widths_where_given
from harvest.models.load import takes

ATTENTION = re.compile(r"(self_?)?(attn|attention)", re.IGNORECASE)
LAYER = re.compile(r"(layers|blocks)\.(\d+)\.(.+)")
"""A site in a layer, as we name it or as TransformerLens does."""
MLP = re.compile(r"mlp|ffn|ff|feed_?forward|(block_sparse_)?moe", re.IGNORECASE)


def resolve_sites(model: torch.nn.Module, names: Iterable[str]) -> dict[str, list[Site]]:
    """Each name as written -> its sites: one, or every one that a name with `*` matches, in the order of the pass.

    `layers.40%.resid_post` becomes the layer at that depth; `*` stands for anything between two dots.
    Raises `UserError` for a name that the model does not have, with what it has.
    """
    named = {site.name: site for site in named_sites(model)}
    return {name: _matching(model, name, named) if "*" in name else [_resolve(model, name, named)] for name in names}


def chosen_sites(model: torch.nn.Module, names: Iterable[str]) -> tuple[list[Site], dict[str, str]]:
    """The sites that these names stand for, each once, and the stored name of each that is written for one alone."""
    written = resolve_sites(model, names)
    aliases = {name: sites[0].name for name, sites in written.items() if "*" not in name}
    return list({site.name: site for sites in written.values() for site in sites}.values()), aliases


def list_sites(model: torch.nn.Module) -> dict[str, int | None]:
    """Every named site -> the width of its vectors; None where a pass gives no vector per token."""
    return widths_where_given(model, named_sites(model))


def named_sites(model: Any) -> list[Site]:
    """All sites with a name of their own, in the order of the forward pass.

    A model that is not from transformers names them itself, in a method of this name.
    """
    if hasattr(model, "named_sites"):
        found: list[Site] = model.named_sites()
        return found
    sites = []
    with suppress(NotImplementedError):  # TrOCR does not say which module they are
        if (embed := _path_of(model, model.get_input_embeddings())) is not None:
            sites.append(Site("embed", embed, "out"))
    if (stack := _layer_stack(model)) is not None:
        for index, layer in enumerate(model.get_submodule(stack).children()):
            sites += layer_sites(f"layers.{index}", f"{stack}.{index}", layer)
    # A base model returns its last hidden state first, and it is final-normed wherever there is a final norm.
    base = _path_of(model, model.base_model)
    return sites if base is None else [*sites, Site("final", base, "out")]


def layer_sites(name: str, path: str, layer: torch.nn.Module) -> list[Site]:
    """The sites of one layer at `path`: its ends, and those of its parts that can be told apart."""
    sites = [Site(f"{name}.resid_pre", path, "in")]
    if (attention := _part(layer, ATTENTION)) is not None:
        sites.append(Site(f"{name}.attn_out", f"{path}.{attention}", "out"))
    if (mlp := _part(layer, MLP)) is not None:
        sites += [Site(f"{name}.mlp_{side}", f"{path}.{mlp}", side) for side in ("in", "out")]
    return [*sites, Site(f"{name}.resid_post", path, "out")]


def _part(layer: torch.nn.Module, kind: re.Pattern[str]) -> str | None:
    """The one child that plays this part. A module that takes the residual adds it itself: its output is not the part's
    own (BLOOM, MPT, and BERT, whose `attention` holds such a module)."""
    parts = [
        name
        for name, child in layer.named_children()
        if kind.fullmatch(name)
        and not any(takes(module, key) for module in (child, *child.children()) for key in ("residual", "input_tensor"))
    ]
    return parts[0] if len(parts) == 1 else None


def _layer_stack(model: Any) -> str | None:
    """The path of the module list that holds the layers: as long as the config says, and the one with most weights.

    Those of a vision tower beside it are another config's. None where no list holds whole layers: XLM has its
    attentions in one list and its MLPs in another beside it.
    """
    text = model.config.get_text_config()
    depth = getattr(text, "num_hidden_layers", None)
    stacks = {
        path: sum(weight.numel() for weight in module.parameters())
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList)
        and len(module) == depth
        and isinstance(_config(model, path), type(text))
    }
    if not stacks:
        return None
    largest = max(stacks, key=lambda path: stacks[path])
    beside = [path for path in stacks if path.rpartition(".")[0] == largest.rpartition(".")[0]]
    return largest if len(beside) == 1 else None


def _config(model: Any, path: str) -> Any:
    """The config of the innermost module around `path` that has one."""
    names = path.split(".")
    around = (model.get_submodule(".".join(names[:end])) for end in range(len(names) - 1, -1, -1))
    return next((module.config for module in around if hasattr(module, "config")), None)


def _path_of(model: torch.nn.Module, wanted: torch.nn.Module | None) -> str | None:
    return next((path for path, module in model.named_modules() if module is wanted), None)


def _matching(model: torch.nn.Module, name: str, named: dict[str, Site]) -> list[Site]:
    pattern = re.compile(r"[^.:]*".join(map(re.escape, name.split("*"))))
    of_modules = [f"{path}:{side}" for path, _ in model.named_modules() for side in ("in", "out")]
    if found := [known for known in dict.fromkeys([*named, *of_modules]) if pattern.fullmatch(known)]:
        return [_resolve(model, known, named) for known in found]
    raise UserError(
        f"{name}: no site matches (* stands for anything between two dots); this model has {_what_there_is(named)}"
    )


def _resolve(model: torch.nn.Module, name: str, named: dict[str, Site]) -> Site:
    if name in named:
        return named[name]
    path, colon, side = name.rpartition(":")
    if colon and side in ("in", "out"):
        if path in dict(model.named_modules()):
            return Site(name, path, side)  # type: ignore[arg-type]
        raise UserError(f"{name}: this model has no module {path!r}; it has {_what_there_is(named)}")
    depth = len({match[2] for match in map(LAYER.fullmatch, named) if match})
    canonical = name
    if depth and (match := re.fullmatch(r"(layers|blocks)\.(\d+(?:\.\d+)?)%\.(.+)", name)):
        # Percentages are of the number of layers; 100% is the last one.
        if float(match[2]) > 100:
            raise UserError(f"{name}: a relative depth is between 0% and 100%")
        canonical = f"{match[1]}.{min(round(float(match[2]) / 100 * depth), depth - 1)}.{match[3]}"
    if canonical in named:
        return named[canonical]
    if depth and (match := LAYER.fullmatch(canonical)) and int(match[2]) >= depth:
        raise UserError(f"{name}: this model has layers 0 to {depth - 1}")
    raise UserError(f"{name}: no such site; this model has {_what_there_is(named)}")


def _what_there_is(named: dict[str, Any]) -> str:
    """Such as `layers.0 to layers.29, each with resid_pre, attn_out, ...; embed; final; or a module path ...`."""
    parts: dict[str, list[str]] = {}
    for match in filter(None, map(LAYER.fullmatch, named)):
        parts.setdefault(f"{match[1]}.{match[2]}", []).append(match[3])
    pieces = []
    if parts:
        known = dict.fromkeys(part for layer in parts.values() for part in layer)
        everywhere = [part for part in known if all(part in layer for layer in parts.values())]
        first, last = next(iter(parts)), next(reversed(parts))
        pieces.append(f"{first} to {last}, each with {', '.join(everywhere)}")
        if somewhere := [part for part in known if part not in everywhere]:
            pieces.append(f"some of them with {', '.join(somewhere)}")
    pieces += [name for name in named if not LAYER.fullmatch(name)]
    return "; ".join([*pieces, "or a module path with :in or :out"])
