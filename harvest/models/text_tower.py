"""The text towers of CLIP and SigLIP: text models that end in one embedding per text."""

from typing import Any

import torch

from harvest.config import ModelSpec
from harvest.models.capture import text_inputs
from harvest.models.load import import_transformers, load_weights, one_line_errors
from harvest.models.towers import Tower

KINDS = {
    "clip": "CLIPTextModelWithProjection",
    "clip_text_model": "CLIPTextModelWithProjection",
    "siglip": "SiglipTextModel",
    "siglip_text_model": "SiglipTextModel",
}
"""The half of a two-tower model that reads, by model type."""


class TextTower(Tower):
    """A text model that hooks can be put on: token ids and mask `(B, T)` in, text embeddings `(B, width)` out.

    The embedding is read off one token, as the model does: CLIP's is its end-of-text token, which a text must have for
    its embedding to mean anything (in SigLIP, it is the last token there is).
    `config` says how long a text may be, like that of a model of transformers.
    """

    def __init__(self, body: Any, fixed_length: bool = False) -> None:
        """`body(input_ids, attention_mask)` gives a record with `text_embeds` or `pooler_output`. `fixed_length`: its
        texts are padded to the longest there may be, and it sees the padding."""
        super().__init__(body)
        self.fixed_length = fixed_length
        self.config = body.config
        ids_BT = torch.arange(22).view(2, 11) % self.config.get_text_config().vocab_size
        self.find_sites(text_inputs(self, ids_BT, torch.ones_like(ids_BT)), [])

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        output = self.body(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids)
        projected = getattr(output, "text_embeds", None)
        embedding: torch.Tensor = output.pooler_output if projected is None else projected
        self.pooled_normalized(self.pooled(embedding))
        return embedding


def load_text_tower(spec: ModelSpec, device: torch.device | str, config: Any) -> TextTower:
    """The text tower of a model whose `config.model_type` is in `KINDS`, in `spec.dtype` on `device`."""
    name = KINDS[config.model_type]
    if config.architectures == ["CLIPTextModel"]:  # saved without a projection
        name = "CLIPTextModel"
    if config.model_type == "clip":
        config.text_config.projection_dim = config.projection_dim
    body = load_weights(spec, device, getattr(import_transformers(), name), getattr(config, "text_config", config))
    with one_line_errors(f"model {spec.id}: its text tower cannot be run", spec):
        return TextTower(body, fixed_length=config.model_type.startswith("siglip"))
