"""Every site of a model, by what is read there, with its width and what a row of it can be."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from harvest.config import ModelSpec
from harvest.errors import UserError
from harvest.models.capture import few_tokens, run_until_captured, text_inputs
from harvest.models.load import load_config, load_model
from harvest.models.sites import list_sites
from harvest.models.text_tower import KINDS, TextTower
from harvest.models.towers import Tower
from harvest.models.vision import load_vision, sees_images


@dataclass(frozen=True)
class Listed:
    """`width` of a site's vectors, None where there is none a token; `rows`: what `rows` may say in a harvest of it."""

    width: int | None
    rows: tuple[str, ...]


def sites_by_input(spec: ModelSpec) -> Iterator[tuple[str, Mapping[str, Listed] | str]]:
    """`text` and `images`, whichever the model takes -> its sites in the order of the pass; or, of a text tower that
    cannot be read beside a vision tower that can, why."""
    sees = sees_images(spec)
    if sees:
        tower = load_vision(spec, "cpu")
        height, width = tower.size if isinstance(tower.size, tuple) else (tower.size, tower.size)
        rows = ("patches", "images") if tower.has_cls else ("patches",)
        yield "images", _of_tower(tower, {"pixel_values": torch.zeros(2, 3, height, width)}, rows, "images")
    if sees and spec.backend == "transformers" and load_config(spec).model_type not in KINDS:
        return
    try:
        model = load_model(spec, "cpu")
    except UserError as error:
        if not sees:
            raise
        yield "text", str(error)
        return
    if isinstance(model, TextTower):
        inputs = text_inputs(model, *few_tokens())
        yield "text", _of_tower(model, inputs, ("tokens", "texts"), "texts")
    else:
        yield "text", {name: Listed(width, ("tokens",) if width else ()) for name, width in list_sites(model).items()}


def _of_tower(
    tower: Tower, inputs: Mapping[str, torch.Tensor], of_tokens: tuple[str, ...], whole: str
) -> dict[str, Listed]:
    seen = run_until_captured(tower, tower.named_sites(), inputs)
    return {
        site.name: Listed(seen[site.name].shape[-1], of_tokens if seen[site.name].ndim == 3 else (whole,))
        for site in tower.named_sites()
    }
