"""What a pass of a model costs, from its config alone: run on the device `meta`, where nothing is computed.

A pass is of one sequence, or one image, up to the deepest site.
"""

import math
import re
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from harvest.config import HarvestSpec, ModelSpec
from harvest.errors import NotKnown, UserError
from harvest.image_source import rows_are_images
from harvest.models.capture import Site, run_until_captured, text_inputs
from harvest.models.load import context_limit, load_model
from harvest.models.sites import chosen_sites
from harvest.models.vision import load_vision
from harvest.plan import Footprint, Sites

BATCH = 3
"""Sequences or images that are run: a shape that heads, layers and experts do not come in by chance."""


def footprint_of(model: ModelSpec, harvest: HarvestSpec, context: int | None) -> Footprint:
    """Of a model that reads texts of `context` tokens, or sees images where there is no `context`.

    Raises `NotKnown` where the model's config can't be had or a pass needs values, `UserError` for a site that it
    does not have.
    """
    if model.backend == "transformer_lens":
        raise NotKnown(f"model {model.id}: backend: transformer_lens makes no model without its weights")
    model = model.model_copy(update={"device_map": None})  # on one device, that has nothing
    return _of_images(model, harvest) if context is None else _of_text(model, harvest, context)


def _of_text(spec: ModelSpec, harvest: HarvestSpec, context: int) -> Footprint:
    model: Any = load_model(spec, "meta")
    # A config that has no cache makes transformers look for packed sequences, by the values of their positions.
    model.config.use_cache = True
    sites, aliases = chosen_sites(model, harvest.sites)
    tokens = min(context, context_limit(model) or context)
    ids_BT = torch.zeros((BATCH, tokens), dtype=torch.long)
    run = _Run(spec, model, sites, lambda: text_inputs(model, ids_BT, torch.ones_like(ids_BT)))
    return run.footprint(aliases, tokens, 1 if harvest.rows == "texts" else None)


def _of_images(spec: ModelSpec, harvest: HarvestSpec) -> Footprint:
    tower = load_vision(spec, "meta")
    sites, aliases = chosen_sites(tower, harvest.sites)
    height, width = tower.size if isinstance(tower.size, tuple) else (tower.size, tower.size)
    pixels_BCHW = torch.zeros(BATCH, 3, height, width, device="meta")
    run = _Run(spec, tower, sites, lambda: {"pixel_values": pixels_BCHW})
    layers = [site for site in tower.named_sites() if site.name.startswith("layers.")]
    in_layers = run_until_captured(tower, layers[:1], {"pixel_values": pixels_BCHW}) if layers else {}
    tokens = next((value.shape[1] for value in in_layers.values()), max(1, height * width // 16**2))
    whole = rows_are_images(harvest.rows, sites, run.shapes, tower.has_cls)
    return run.footprint(aliases, tokens, 1 if whole else tokens - tower.prefix)


class _Run:
    """One pass over `BATCH` inputs, and what was seen of it."""

    def __init__(
        self, spec: ModelSpec, model: torch.nn.Module, sites: list[Site], inputs: Callable[[], dict[str, torch.Tensor]]
    ) -> None:
        self.model = model
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.given: dict[str, int] = {}
        self.counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten._grouped_mm: _experts_flops})
        with ExitStack() as hooks:
            for path, module in model.named_modules():
                if next(module.children(), None) is None:
                    hooks.callback(module.register_forward_hook(self._note(path)).remove)
            try:
                with self.counter:
                    captured = run_until_captured(model, sites, inputs())
            except Exception as error:  # a model may look at the values of its tensors
                raise NotKnown(f"model {spec.id}: a pass cannot be followed without weights ({error})") from error
        for site in sites:
            if site.name not in captured:
                raise UserError(f"{site.name}: a forward pass of this model gives no tensor there")
            self.shapes[site.name] = tuple(captured[site.name].shape)

    def _note(self, path: str) -> Callable[..., None]:
        # What one layer's modules give is about what is in memory at once: the next layer's takes its place.
        layer = match[1] if (match := re.match(r"(.*?\.\d+)(\.|$)", path)) else path

        def note(_module: Any, _inputs: Any, output: Any) -> None:
            outputs: Iterable[Any] = output if isinstance(output, tuple) else (output,)
            size = sum(value.numel() * value.element_size() for value in outputs if isinstance(value, torch.Tensor))
            self.given[layer] = self.given.get(layer, 0) + size

        return note

    def footprint(self, aliases: dict[str, str], tokens: int, rows: int | None) -> Footprint:
        weights = list(self.model.parameters())
        # Several vectors a token, such as one a head, are stored as one long one.
        widths = {name: math.prod(shape[2 if len(shape) > 2 else 1 :]) for name, shape in self.shapes.items()}
        return Footprint(
            Sites(widths, rows, aliases),
            sum(weight.numel() for weight in weights),
            sum(weight.numel() * weight.element_size() for weight in weights),
            tokens,
            self.counter.get_total_flops() / BATCH,
            max(self.given.values(), default=0) // BATCH,
        )


def _experts_flops(tokens: Any, weights: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Of rows that go to one expert each: `(n, K)` times one of `(E, K, N)`."""
    return int(2 * tokens[0] * tokens[1] * weights[-1])
