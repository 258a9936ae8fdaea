"""Vision towers: what turns an image into tokens and an embedding, with sites like those of text models."""

from collections.abc import Callable
from typing import Any

import PIL.Image
import torch

from harvest.config import ModelSpec
from harvest.errors import UserError
from harvest.models.capture import Site
from harvest.models.load import import_transformers, input_device, load_config, load_weights, one_line_errors, source_of
from harvest.models.towers import Tower

CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")
TWO_TOWERS = {"clip": "CLIPVisionModelWithProjection", "siglip": "SiglipVisionModel"}
"""The half that sees, by model type."""


class VisionTower(Tower):
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
        """`embed(body, pixels)` gives the image embeddings; `preprocess(image)` the pixels `(3, H, W)` of one image."""
        super().__init__(body)
        self._embed, self._preprocess = embed, preprocess
        _, height, width = self.preprocess(PIL.Image.new("RGB", (64, 48))).shape
        self.size: int | tuple[int, int] = height if height == width else (height, width)
        self.prefix = self._look(height, width)
        self.has_cls = self.prefix > 0 and has_class_token(body)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        dtype = next(weight.dtype for weight in self.body.parameters() if weight.is_floating_point())
        embedding = self._embed(self.body, pixel_values.to(input_device(self.body), dtype))
        self.pooled_normalized(self.pooled(embedding))
        return embedding

    def preprocess(self, image: PIL.Image.Image) -> torch.Tensor:
        """Pixels `(3, H, W)` in float32, as this model was trained to see them."""
        return self._preprocess(image.convert("RGB"))

    def _look(self, height: int, width: int) -> int:
        """Find the sites; returns how many tokens are more than the patches that some convolution cuts."""
        noise = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
        convolutions = [
            Site(f"{path}:out", path, "out")
            for path, module in self.named_modules()
            if isinstance(module, torch.nn.Conv2d)
        ]
        seen = self.find_sites({"pixel_values": noise}, convolutions)
        if not any(site.name == "layers.0.resid_pre" for site in self.named_sites()):
            return 0
        tokens = seen["layers.0.resid_pre"].shape[1]
        patches = [seen[site.name][0, 0].numel() for site in convolutions if site.name in seen]
        return tokens - max((count for count in patches if count <= tokens), default=tokens)


def load_vision(spec: ModelSpec, device: torch.device | str) -> VisionTower:
    """The model's vision tower in `spec.dtype` on `device`, ready for inference; no other part of it is loaded.

    Raises `UserError` for a model that takes no image or that has weights missing.
    """
    if spec.backend == "open_clip":
        from harvest.models.open_clip_towers import load_open_clip_vision

        return load_open_clip_vision(spec, device)
    if spec.backend != "transformers":
        raise UserError(f"backend: {spec.backend} runs no vision model; take transformers or open_clip")
    body = _load_body(spec, device)
    if torch.device(device).type == "meta":
        size = _pixels(spec)
        return VisionTower(body, _embed, lambda _: torch.zeros(3, *size))
    # PIL, because torchvision resizes a little differently, and its operators need not be there.
    with one_line_errors(f"model {spec.id}: its image processor (preprocessor_config.json) cannot be loaded", spec):
        processor = import_transformers().AutoImageProcessor.from_pretrained(**source_of(spec), backend="pil")

    def preprocess(image: PIL.Image.Image) -> torch.Tensor:
        pixels: torch.Tensor = processor(image, return_tensors="pt")["pixel_values"][0]
        return pixels

    with one_line_errors(f"model {spec.id}: its vision tower cannot be run", spec):
        return VisionTower(body, _embed, preprocess)


def _pixels(spec: ModelSpec) -> tuple[int, int]:
    """Height and width of the images that the model takes, as its config alone says."""
    config = load_config(spec)
    size = getattr(getattr(config, "vision_config", config), "image_size", None)
    if not isinstance(size, int | tuple | list):
        raise UserError(f"model {spec.id}: its config does not say how large its images are")
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def sees_images(spec: ModelSpec) -> bool:
    """Whether the model has a vision tower that `load_vision` loads."""
    if spec.backend != "transformers":
        return spec.backend == "open_clip"
    return _vision_class(load_config(spec)) is not None


def _vision_class(config: Any) -> Any:
    """The class of transformers that a model's vision tower is; None where it has none whose images have one size."""
    architecture = next(iter(getattr(config, "architectures", None) or ()), "")
    kind = getattr(import_transformers(), TWO_TOWERS.get(config.model_type, architecture), None)
    sees = getattr(kind, "main_input_name", None) == "pixel_values" and "siglip2" not in config.model_type
    return kind if sees else None


def _load_body(spec: ModelSpec, device: torch.device | str) -> Any:
    """The model without a classification head, but with the projection of its image embedding."""
    config = load_config(spec)
    kind = _vision_class(config)
    if kind is None:
        raise UserError(
            f"model {spec.id}: {config.model_type} is no vision model whose images all have one size; expected CLIP, "
            "SigLIP, ViT, DINOv2 or the like"
        )
    if config.model_type == "clip":
        config.vision_config.projection_dim = config.projection_dim
    model = load_weights(spec, device, kind, getattr(config, "vision_config", config))
    return model if hasattr(model, "visual_projection") else model.base_model


def _embed(body: Any, pixels_BCHW: torch.Tensor) -> torch.Tensor:
    """The image embedding: as projected, or as the model pools it, or else its class token after the last norm (where
    it has none, the mean of its tokens)."""
    output = body(pixel_values=pixels_BCHW)
    for name in ("image_embeds", "pooler_output"):
        if (embedding := getattr(output, name, None)) is not None:
            assert isinstance(embedding, torch.Tensor)
            return embedding.flatten(1)  # a ResNet's is (B, width, 1, 1)
    tokens_BTD: torch.Tensor = output.last_hidden_state
    return tokens_BTD[:, 0] if has_class_token(body) else tokens_BTD.mean(1)


def has_class_token(body: torch.nn.Module) -> bool:
    """Whether some token stands for the whole image, by the names of its weights."""
    return any(name.endswith(CLASS_TOKENS) for name, _ in body.named_parameters())
