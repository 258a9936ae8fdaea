"""Vision towers: what turns an image into tokens and an embedding, with sites like those of text models."""

from collections.abc import Callable, Iterator
from typing import Any

import PIL.Image
import torch

from harvest.config import ModelSpec
from harvest.errors import UserError
from harvest.models.capture import Site, run_until_captured
from harvest.models.load import import_transformers, input_device, load_config, load_weights, one_line_errors, source_of
from harvest.models.sites import layer_sites

CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")
VISION_MODELS = {"clip": "CLIPVisionModelWithProjection", "siglip": "SiglipVisionModel"}
"""The half of a two-tower model that sees."""


def load_vision(spec: ModelSpec, device: torch.device | str) -> "VisionTower":
    """The model's vision tower in `spec.dtype` on `device`, ready for inference; no other part of it is loaded.

    Raises `UserError` for a model that takes no image or that has weights missing.
    """
    if spec.backend == "open_clip":
        from harvest.models.open_clip_towers import load_open_clip_vision

        return load_open_clip_vision(spec, device)
    if spec.backend != "transformers":
        raise UserError(f"backend: {spec.backend} runs no vision model; take transformers or open_clip")
    processor = _load_processor(spec)
    body = _load_body(spec, device)

    def preprocess(image: PIL.Image.Image) -> torch.Tensor:
        pixels: torch.Tensor = processor(image, return_tensors="pt")["pixel_values"][0]
        return pixels

    with one_line_errors(f"model {spec.id}: its vision tower cannot be run", spec):
        return VisionTower(body, _pool, preprocess)


def _load_body(spec: ModelSpec, device: torch.device | str) -> Any:
    """The model without a classification head, but with the projection of its image embedding."""
    transformers, config = import_transformers(), load_config(spec)
    architecture = (getattr(config, "architectures", None) or [""])[0]
    kind = getattr(transformers, VISION_MODELS.get(config.model_type, architecture), transformers.AutoModel)
    if config.model_type == "clip":
        config.vision_config.projection_dim = config.projection_dim
    config = getattr(config, "vision_config", config)
    takes_images = getattr(kind, "main_input_name", "pixel_values") == "pixel_values"
    if not takes_images or config.model_type.startswith("siglip2") or not hasattr(config, "patch_size"):
        raise UserError(
            f"model {spec.id}: a {config.model_type} is no vision model whose images all have one size; expected CLIP, "
            "SigLIP, ViT, DINOv2 or the like"
        )
    model = load_weights(spec, device, kind, config)
    # A classification head is no part of the tower; a projection is.
    return model if hasattr(model, "visual_projection") else model.base_model


def _pool(body: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    """The image embedding: as projected, as the model pools it, or else its class token after the final norm."""
    output = body(pixel_values=pixel_values)
    for name in ("image_embeds", "pooler_output"):
        if (embedding := getattr(output, name, None)) is not None:
            assert isinstance(embedding, torch.Tensor)
            return embedding
    tokens: torch.Tensor = output.last_hidden_state
    return tokens[:, 0]


def _load_processor(spec: ModelSpec) -> Any:
    """The model's own image processor. It works on PIL images, not with torchvision, whose resizing differs a little
    and whose operators need not be there."""
    source = source_of(spec)
    with one_line_errors(f"model {spec.id}: its image processor (preprocessor_config.json) cannot be loaded", spec):
        return import_transformers().AutoImageProcessor.from_pretrained(**source, backend="pil")


class Normalized(torch.nn.Module):
    """Vectors of unit L2 norm."""

    def forward(self, x_BD: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(x_BD, dim=-1)


class VisionTower(torch.nn.Module):
    """A vision model that hooks can be put on: pixels `(B, 3, H, W)` in, image embeddings `(B, width)` out.

    `prefix` tokens come before the patches, such as a class token (`has_cls`) and registers. `size` is the height and
    width of preprocessed images in pixels, one number where they are equal.
    """

    def __init__(
        self,
        body: torch.nn.Module,
        embed: Callable[[Any, torch.Tensor], torch.Tensor],
        preprocess: Callable[[PIL.Image.Image], torch.Tensor],
    ) -> None:
        super().__init__()
        self.body = body
        self.pooled = torch.nn.Identity()
        self.pooled_normalized = Normalized()
        self._embed, self._preprocess = embed, preprocess
        _, height, width = self.preprocess(PIL.Image.new("RGB", (64, 48))).shape
        self.size: int | tuple[int, int] = height if height == width else (height, width)
        self._sites, self.prefix = _look(self.eval().requires_grad_(False), height, width)
        has_token = any(name.endswith(CLASS_TOKENS) for name, _ in body.named_parameters())
        self.has_cls = self.prefix > 0 and has_token

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        weight = next(self.body.parameters())
        embedding = self._embed(self.body, pixel_values.to(input_device(self.body), weight.dtype))
        self.pooled_normalized(self.pooled(embedding))
        return embedding

    def preprocess(self, image: PIL.Image.Image) -> torch.Tensor:
        """Pixels `(3, H, W)` in float32, as this model was trained to see them."""
        return self._preprocess(image.convert("RGB"))

    def named_sites(self) -> list[Site]:
        """All sites with a name of their own, in the order of the forward pass."""
        return self._sites


def _look(tower: VisionTower, height: int, width: int) -> tuple[list[Site], int]:
    """The tower's sites and the number of tokens before its patches, both learnt from a pass over two noise images."""
    candidates = list(_candidates(tower.body))
    convolutions = [
        Site(path, path, "out") for path, module in tower.named_modules() if isinstance(module, torch.nn.Conv2d)
    ]
    noise = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    seen = run_until_captured(tower, [*candidates, *convolutions], {"pixel_values": noise})
    pooled = [Site(name, name, "out") for name in ("pooled", "pooled_normalized")]
    first = seen.get("layers.0.resid_pre")
    if first is None or first.ndim != 3 or len(first) != 2:
        return pooled, 0
    tokens = first.shape[1]
    sites = [site for site in candidates if site.name in seen and seen[site.name].shape[:-1] == (2, tokens)]
    if not _adds_up(sites, seen):
        sites = [site for site in sites if not site.name.endswith(("attn_out", "mlp_out"))]
    patches = [seen[conv.name][0, 0].numel() for conv in convolutions if conv.name in seen]
    return [*sites, *pooled], tokens - max((count for count in patches if count <= tokens), default=tokens)


def _candidates(body: Any) -> Iterator[Site]:
    """Sites by the names of modules. `embed` comes before the norm that CLIP has in front of its layers."""
    paths = {path.rpartition(".")[2]: f"body.{path}" for path, _ in reversed(list(body.named_modules()))}
    if "embeddings" in paths:
        yield Site("embed", paths["embeddings"], "out")
    elif "ln_pre" in paths:
        yield Site("embed", paths["ln_pre"], "in")
    if (stack := layer_stack(body)) is not None:
        for index, layer in enumerate(body.get_submodule(stack).children()):
            yield from layer_sites(f"layers.{index}", f"body.{stack}.{index}", layer)
    base = getattr(body, "base_model", None)
    if base is not None:
        path = next(path for path, module in body.named_modules() if module is base)
        yield Site("final", f"body.{path}".rstrip("."), "out")
    elif final := paths.get("ln_post") or paths.get("norm"):
        yield Site("final", final, "out")


def layer_stack(body: torch.nn.Module) -> str | None:
    """The path of the list of equal layers that has most of the weights; None where there is none."""
    stacks = {
        path: (sum(weight.numel() for weight in module.parameters()), len(module))
        for path, module in body.named_modules()
        if isinstance(module, torch.nn.ModuleList | torch.nn.Sequential)
        and len({type(layer) for layer in module.children()}) == 1
    }
    return max(stacks, key=lambda path: stacks[path], default=None)


def _adds_up(sites: list[Site], seen: dict[str, torch.Tensor]) -> bool:
    """Whether every layer adds what its attention and MLP give to the residual stream as it is, without scaling."""
    names = {site.name for site in sites}
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
