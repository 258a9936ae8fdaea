"""TransformerLens as a backend: the same weights, read at its own hook points."""

from typing import Any

import torch

from harvest.config import ModelSpec
from harvest.errors import UserError
from harvest.models.capture import Site
from harvest.models.load import import_transformers, load_tokenizer, load_weights, one_line_errors


class LensModel(torch.nn.Module):
    """A `TransformerBridge` that takes token ids and mask like any text model, and whose sites are its hook points."""

    def __init__(self, bridge: Any) -> None:
        super().__init__()
        self.bridge = bridge
        self.config = bridge.original_model.config

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return self.bridge(input_ids, attention_mask=attention_mask, return_type=None)

    def named_sites(self) -> list[Site]:
        """Every name of every hook point (`blocks.3.hook_out` is also `blocks.3.hook_resid_post`), in the order of the
        model's modules."""
        paths: dict[Any, str] = {}
        for path, module in self.named_modules():
            paths.setdefault(module, path)
        order = {path: index for index, path in enumerate(paths.values())}
        sites = [Site(name, paths[hook], "out") for name, hook in self.bridge.hook_dict.items() if hook in paths]
        return sorted(sites, key=lambda site: order[site.path])


def load_lens(spec: ModelSpec, device: torch.device | str) -> LensModel:
    """The model with its head, in a `TransformerBridge`. Its weights are as in the files: no norm is folded into them,
    and nothing is centred."""
    transformers = import_transformers()
    try:
        from transformer_lens.model_bridge import TransformerBridge
    except ImportError as error:
        install = "pip install -c constraints.txt transformer-lens"
        raise UserError(f"backend: transformer_lens cannot be imported ({error}); run `{install}`") from error
    model, tokenizer = load_weights(spec, device, transformers.AutoModelForCausalLM), load_tokenizer(spec)
    with one_line_errors(f"model {spec.id}: TransformerLens cannot run it", spec):
        bridge = TransformerBridge.boot_transformers(
            model.config.name_or_path, hf_model=model, tokenizer=tokenizer, dtype=model.dtype
        )
    return LensModel(bridge).eval().requires_grad_(False)
