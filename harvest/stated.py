"""How wide sites are, as far as a model's config.json says it; `harvest.footprint` knows, but takes seconds."""

import json
import pathlib
import re
from typing import Any

from harvest.config import HarvestSpec, ModelSpec
from harvest.plan import Sites

WIDTH = ("hidden_size", "n_embd", "d_model", "width")
DEPTH = ("num_hidden_layers", "n_layer", "layers")
POOLED = ("projection_dim", "embed_dim", "hidden_size")
OF_A_LAYER = re.compile(r"layers\.([^.]+)\.(resid_pre|attn_out|mlp_in|mlp_out|resid_post)")
"""Sites as wide as the residual stream."""


def stated_sites(model: ModelSpec, made: pathlib.Path, spec: HarvestSpec, images: bool) -> Sites | None:
    """None where the config is not on this machine, or does not say it. `made`: where the model is made, if it is."""
    if (config := _config(model, made)) is None:
        return None
    tower = next((config[key] for key in _towers(images) if isinstance(config.get(key), dict)), config)
    width, depth = _first(tower, WIDTH), _first(tower, DEPTH)
    pooled = _first(config, POOLED) or width
    widths: dict[str, int | None] = {}
    for site in spec.sites:
        if found := OF_A_LAYER.fullmatch(site):
            names = [site.replace("*", str(layer)) for layer in range(depth or 0)] if found[1] == "*" else [site]
            widths |= dict.fromkeys(names, width)
        elif site in ("embed", "final"):
            widths[site] = width
        elif site in ("pooled", "pooled_normalized"):
            widths[site] = pooled
        else:
            return None
    known = {site: found for site, found in widths.items() if found}
    if len(known) < len(widths) or not known:
        return None
    whole = spec.rows in ("texts", "images") or (
        spec.rows is None and set(spec.sites) <= {"pooled", "pooled_normalized"}
    )
    if not images:
        return Sites(known, 1 if spec.rows == "texts" else None)
    pixels, patch = tower.get("image_size"), tower.get("patch_size")
    if whole:
        return Sites(known, 1)
    return Sites(known, (pixels // patch) ** 2) if isinstance(pixels, int) and isinstance(patch, int) else None


def _config(model: ModelSpec, made: pathlib.Path) -> dict[str, Any] | None:
    if model.architecture is not None:
        return model.architecture
    if model.gguf is not None or model.backend != "transformers":
        return None
    directories = [made, pathlib.Path(model.id).expanduser()]
    file = next((found for path in directories if (found := path / "config.json").is_file()), None)
    if file is None:
        import huggingface_hub

        try:
            cached = huggingface_hub.try_to_load_from_cache(model.id, "config.json", revision=model.revision)
        except ValueError:  # no name that the Hub has
            return None
        if not isinstance(cached, str):
            return None
        file = pathlib.Path(cached)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None


def _towers(images: bool) -> tuple[str, str]:
    return ("vision_config", "vision_cfg") if images else ("text_config", "text_cfg")


def _first(config: dict[str, Any], names: tuple[str, ...]) -> int | None:
    return next((value for name in names if isinstance(value := config.get(name), int)), None)
