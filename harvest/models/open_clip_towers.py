"""open_clip as a backend: weights from a directory, a file, a tag of its list, or drawn at random; its image towers."""

import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harvest.config import ModelSpec
from harvest.errors import UserError
from harvest.models.load import import_transformers, one_line_errors, weight_facts
from harvest.models.vision import VisionTower

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
"""What a tag of open_clip's list says about images."""


@dataclass(frozen=True)
class Recipe:
    """What a model is made of: open_clip's own configs of model and preprocessing, and the weights, None for random."""

    model: dict[str, Any]
    preprocessing: dict[str, Any]
    weights: Path | None


def load_open_clip_vision(spec: ModelSpec, device: torch.device | str) -> VisionTower:
    """The tower that `encode_image` runs, in `spec.dtype` on `device`."""
    visual = make_model(spec, device).visual.to(device, getattr(torch, spec.dtype))
    images = import_open_clip().transform
    preprocess = images.image_transform_v2(images.PreprocessCfg(**visual.preprocess_cfg), is_train=False)
    with one_line_errors(f"model {spec.id}: its vision tower cannot be run", spec):
        return VisionTower(visual, _embed, preprocess)


def _embed(visual: Any, pixels_BCHW: torch.Tensor) -> torch.Tensor:
    output = visual(pixels_BCHW)
    embedding: torch.Tensor = output[0] if isinstance(output, tuple) else output  # CoCa's gives its tokens too
    return embedding


def open_clip_facts(spec: ModelSpec) -> dict[str, Any]:
    """JSON facts that identify the weights: the configs of model and preprocessing; the tag, and name, size and SHA-256
    of the ends of the weight file; or, of random weights, the seed and the release of open_clip that draws them."""
    recipe = recipe_of(spec)
    facts = {"backend": "open_clip", "architecture": recipe.model, "preprocessing": recipe.preprocessing}
    if recipe.weights is None:
        return facts | {"random_seed": spec.random_seed, "open_clip": import_open_clip().__version__}
    if spec.pretrained is not None and not Path(spec.pretrained).expanduser().is_file():
        facts["pretrained"] = f"{spec.id} {spec.pretrained}"
    return facts | {"weights": {recipe.weights.name: weight_facts(recipe.weights)}}


def import_open_clip() -> Any:
    """The module `open_clip`; torchvision, which it imports, is mended before."""
    import_transformers()
    try:
        import open_clip
    except ImportError as error:
        install = "pip install -c constraints.txt open_clip_torch"
        raise UserError(f"backend: open_clip cannot be imported ({error}); run `{install}`") from error
    return open_clip


def make_model(spec: ModelSpec, device: torch.device | str = "cpu") -> Any:
    """The whole model in float32 on the CPU: random weights are then the same whatever the device and dtype. For the
    device `meta` it has none."""
    place = "meta" if torch.device(device).type == "meta" else "cpu"
    open_clip, recipe = import_open_clip(), recipe_of(spec, weights=place == "cpu")
    with (
        one_line_errors(f"model {spec.id}: open_clip cannot make it", spec),
        tempfile.TemporaryDirectory() as folder,
        torch.random.fork_rng(devices=[]),
        _silence(),
    ):
        torch.manual_seed(spec.random_seed or 0)
        # open_clip takes a config from a folder, and would unpickle weights that it finds in one: here there are none.
        configs = {"model_cfg": recipe.model, "preprocess_cfg": recipe.preprocessing}
        Path(folder, CONFIG).write_text(json.dumps(configs))
        with torch.device(place):
            made_from = f"local-dir:{folder}"
            model = open_clip.create_model(made_from, load_weights=False, pretrained_text=False, device=place)
        if recipe.weights is not None:
            open_clip.load_checkpoint(model, str(recipe.weights))
    return model.eval().requires_grad_(False)


@contextmanager
def _silence() -> Iterator[None]:
    """open_clip warns that weights are random, which the user asked for, or which are loaded right afterwards."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def recipe_of(spec: ModelSpec, weights: bool = True) -> Recipe:
    """Where each part of the model comes from; a tag's weights are downloaded, once, unless no `weights` are wanted."""
    directory = Path(spec.id).expanduser()
    if directory.is_dir():
        return _from_directory(spec, directory, weights)
    if spec.architecture is not None:
        return Recipe(spec.architecture, {}, None)
    open_clip = import_open_clip()
    model = open_clip.get_model_config(spec.id) if spec.id in open_clip.list_models() else None
    if model is None:
        raise UserError(
            f"model {spec.id}: neither a directory nor an architecture of open_clip, such as ViT-B-32; "
            "open_clip.list_models() lists them"
        )
    if spec.random_seed is not None:
        return Recipe(model, {}, None)
    if spec.pretrained is None:
        raise UserError(f"model {spec.id}: give pretrained, a tag or a .safetensors file, or random_seed")
    return _from_pretrained(spec, model, spec.pretrained, weights)


def _from_directory(spec: ModelSpec, directory: Path, weights: bool) -> Recipe:
    if spec.pretrained is not None or spec.random_seed is not None:
        raise UserError(f"model {spec.id}: a directory has its own weights; leave out pretrained and random_seed")
    for name in (CONFIG, WEIGHTS) if weights else (CONFIG,):
        if not (directory / name).is_file():
            raise UserError(
                f"model {spec.id}: the directory has no {name}; expected {CONFIG} and {WEIGHTS} (pickled weights are "
                "never loaded)"
            )
    with one_line_errors(f"model {spec.id}: {CONFIG} cannot be read", spec):
        config = json.loads((directory / CONFIG).read_text())
        return Recipe(config["model_cfg"], config.get("preprocess_cfg", {}), directory / WEIGHTS if weights else None)


def _from_pretrained(spec: ModelSpec, model: dict[str, Any], pretrained: str, weights: bool) -> Recipe:
    file = Path(pretrained).expanduser()
    if file.is_file():
        if file.suffix != ".safetensors":
            raise UserError(f"pretrained: {pretrained}: give a .safetensors file; pickled weights are never loaded")
        return Recipe(model, {}, file)
    listed = import_open_clip().pretrained
    tag = listed.get_pretrained_cfg(spec.id, pretrained)
    if not tag:
        tags = ", ".join(listed.list_pretrained_tags_by_model(spec.id)) or "none"
        raise UserError(f"pretrained: {pretrained}: neither a file nor a tag of {spec.id}; its tags are {tags}")
    if tag.get("quick_gelu", False) != model.get("quick_gelu", False):
        # open_clip warns and goes on with the wrong activation function.
        raise UserError(f"pretrained: {pretrained} was trained with QuickGELU; write id: {spec.id}-quickgelu")
    preprocessing = {key: tag[key] for key in PREPROCESSING if tag.get(key) is not None}
    return Recipe(model, preprocessing, _download(spec, tag.get("hf_hub", "")) if weights else None)


def _download(spec: ModelSpec, listed: str) -> Path:
    """The safetensors beside the pickled weights that open_clip lists, `owner/name/file` on the Hub (without a file:
    its usual names). open_clip itself takes the pickled ones wherever the others cannot be had."""
    import huggingface_hub

    repository, _, pickled = listed.rpartition("/")
    name = str(Path(pickled).with_suffix(".safetensors")) if pickled else WEIGHTS
    no_safetensors = UserError(f"pretrained: {spec.pretrained} has no safetensors; pickled weights are never loaded")
    if not repository:
        raise no_safetensors
    try:
        return Path(huggingface_hub.hf_hub_download(repository, name))
    except huggingface_hub.errors.RemoteEntryNotFoundError as error:
        raise no_safetensors from error
    except Exception as error:  # a network has many ways to fail
        raise UserError(
            f"pretrained: {spec.pretrained}: {name} of {repository} is not in the Hugging Face cache and cannot be "
            f"downloaded ({type(error).__name__}); with the Hub in reach, run `hf download {repository} {name}`"
        ) from error
