"""What a pass takes, from a config alone, against the model with its weights."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from harvest.config import HarvestSpec, ModelSpec
from harvest.errors import NotKnown, UserError
from harvest.footprint import footprint_of
from harvest.models.capture import run_until_captured, text_inputs
from harvest.models.load import import_transformers, load_model
from harvest.models.sites import chosen_sites
from harvest.models.vision import load_vision
from harvest.plan import Footprint
from tests.tiny import tiny_clip, tiny_dino, tiny_gpt2, tiny_llama, tiny_open_clip, tiny_siglip, tiny_vit

OPEN_CLIP = ModelSpec(id="tiny", backend="open_clip", dtype="float32", random_seed=0, architecture=tiny_open_clip())


def without_weights(directory: Path) -> ModelSpec:
    """The same directory with nothing but its config."""
    for file in directory.iterdir():
        if file.name != "config.json":
            file.unlink()
    return ModelSpec(id=str(directory), dtype="float32")


def counted(model: Any, names: list[str], inputs: dict[str, torch.Tensor]) -> tuple[int, int, dict[str, int]]:
    """FLOPs and parameters of a model with weights, and the widths of its sites."""
    with FlopCounterMode(display=False) as counter:
        found = run_until_captured(model, chosen_sites(model, names)[0], inputs)
    widths = {name: value.shape[-1] for name, value in found.items()}
    return counter.get_total_flops(), sum(weight.numel() for weight in model.parameters()), widths


def agree(found: Footprint, flops: int, parameters: int, widths: dict[str, int]) -> None:
    assert found.flops == flops
    assert found.parameters == parameters
    assert found.weight_bytes == 4 * parameters
    assert found.sites.widths == widths


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
@pytest.mark.parametrize("sites", [["layers.1.resid_post"], ["layers.0.mlp_in", "layers.40%.mlp_out"], ["final"]])
def test_a_text_model(make: Callable[[Path], Path], sites: list[str], tmp_path: Path) -> None:
    directory = make(tmp_path)
    spec = ModelSpec(id=str(directory), dtype="float32")
    model, ids = load_model(spec, "cpu"), torch.zeros(1, 20, dtype=torch.long)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # the fused kernel of a CPU counts as 0
        wanted = counted(model, sites, text_inputs(model, ids, torch.ones_like(ids)))
    found = footprint_of(without_weights(directory), HarvestSpec(sites=sites), 20)
    agree(found, *wanted)
    assert (found.tokens, found.sites.rows) == (20, None)


@pytest.mark.parametrize("make", [tiny_clip, tiny_siglip, tiny_vit, tiny_dino])
@pytest.mark.parametrize(("sites", "rows"), [(["layers.1.resid_post"], 9), (["pooled"], 1)])
def test_a_vision_tower(make: Callable[[Path], Path], sites: list[str], rows: int, tmp_path: Path) -> None:
    directory = make(tmp_path)
    tower = load_vision(ModelSpec(id=str(directory), dtype="float32"), "cpu")
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        wanted = counted(tower, sites, {"pixel_values": torch.rand(1, 3, 24, 24)})
    found = footprint_of(without_weights(directory), HarvestSpec(sites=sites), None)
    agree(found, *wanted)
    assert (found.tokens, found.sites.rows) == (9 + tower.prefix, rows)


@pytest.mark.parametrize("make", [tiny_clip, tiny_siglip])
def test_a_text_tower(make: Callable[[Path], Path], tmp_path: Path) -> None:
    directory = make(tmp_path)
    tower = load_model(ModelSpec(id=str(directory), dtype="float32"), "cpu")
    ids = torch.zeros(1, 12, dtype=torch.long)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        wanted = counted(tower, ["pooled"], text_inputs(tower, ids, torch.ones_like(ids)))
    found = footprint_of(without_weights(directory), HarvestSpec(sites=["pooled"], rows="texts"), 12)
    agree(found, *wanted)
    assert found.sites.rows == 1


def test_open_clip() -> None:
    images = footprint_of(OPEN_CLIP, HarvestSpec(sites=["layers.1.resid_post"]), None)
    texts = footprint_of(OPEN_CLIP, HarvestSpec(sites=["pooled"], rows="texts"), 12)
    assert (images.sites.widths, images.sites.rows, images.tokens) == ({"layers.1.resid_post": 32}, 9, 10)
    assert (texts.sites.widths, texts.sites.rows, texts.tokens) == ({"pooled": 20}, 1, 12)
    assert images.parameters == sum(weight.numel() for weight in load_vision(OPEN_CLIP, "cpu").parameters())
    # Weights of a tag are not downloaded.
    tagged = ModelSpec(id="ViT-B-32", backend="open_clip", pretrained="laion2b_s34b_b79k")
    assert footprint_of(tagged, HarvestSpec(sites=["pooled"]), None).sites.widths == {"pooled": 512}


def test_flops_are_two_a_weight_and_attention() -> None:
    """Llama 3.1 8B up to layer 12: the weights of 13 layers, and scores and values of all pairs of tokens."""
    file = Path(__file__).parents[1] / "fixtures/architectures/llama-3.1-8b.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harvest.models.load.load_config", lambda _: _config(file))
        spec = ModelSpec(id="meta-llama/Llama-3.1-8B-Instruct")
        found = footprint_of(spec, HarvestSpec(sites=["layers.12.resid_post"]), 1024)
    layer = 4096 * (4096 + 1024 + 1024 + 4096) + 3 * 4096 * 14336
    attention = 2 * 2 * 1024 * 4096
    assert found.flops / 1024 == pytest.approx(13 * (2 * layer + attention), rel=1e-3)
    assert found.parameters == pytest.approx(7.5e9, rel=0.01)  # without the head
    assert found.weight_bytes == 2 * found.parameters


def _config(file: Path) -> Any:
    values = json.loads(file.read_text())
    return import_transformers().AutoConfig.for_model(**values)


def test_experts_count_as_often_as_tokens_go_to_them(tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_local_experts": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "num_experts_per_tok": 2, "vocab_size": 50}
    import_transformers().MixtralConfig(**sizes, **heads).save_pretrained(tmp_path)
    found = footprint_of(ModelSpec(id=str(tmp_path)), HarvestSpec(sites=["layers.0.resid_post"]), 16)
    weights = 4 * 32 * 32 + 32 * 8 + 2 * 3 * 32 * 48
    assert found.flops == 16 * 2 * weights + 2 * 2 * 16 * 16 * 32


def test_several_vectors_a_token_are_one_long_one(tmp_path: Path) -> None:
    directory = tiny_gpt2(tmp_path)
    found = footprint_of(
        ModelSpec(id=str(directory)), HarvestSpec(sites=["layers.*.resid_pre", "h.1.attn.c_attn:out"]), 8
    )
    assert found.sites.widths == {**{f"layers.{i}.resid_pre": 32 for i in range(3)}, "h.1.attn.c_attn:out": 96}
    assert math.isfinite(found.flops)


def test_what_cannot_be_known(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"layers.9.resid_post: this model has layers 0 to 2"):
        footprint_of(ModelSpec(id=str(tiny_gpt2(tmp_path))), HarvestSpec(sites=["layers.9.resid_post"]), 8)
    lens = ModelSpec(id=str(tmp_path), backend="transformer_lens")
    with pytest.raises(NotKnown, match="makes no model without its weights"):
        footprint_of(lens, HarvestSpec(sites=["blocks.1.hook_resid_post"]), 8)
