"""Image and text towers of transformers, against transformers' own forward passes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import safetensors.torch
import torch

from harvest.config import ModelSpec
from harvest.errors import UserError
from harvest.models.capture import capture, run_until_captured, text_inputs
from harvest.models.load import context_limit, import_transformers, load_model, load_tokenizer, model_facts
from harvest.models.sites import list_sites, resolve_sites
from harvest.models.vision import VisionTower, load_vision
from harvest.models.vocabulary import token_bytes
from tests.tiny import tiny_clip, tiny_dino, tiny_gpt2, tiny_siglip, tiny_vit

PARTS = ["resid_pre", "attn_out", "mlp_in", "mlp_out", "resid_post"]
MADE = {
    "CLIPModel": (tiny_clip, 1, 20),
    "CLIPVisionModelWithProjection": (lambda path: tiny_clip(path, "CLIPVisionModelWithProjection"), 1, 20),
    "CLIPVisionModel": (lambda path: tiny_clip(path, "CLIPVisionModel"), 1, 32),
    "SiglipModel": (tiny_siglip, 0, 32),
    "SiglipVisionModel": (lambda path: tiny_siglip(path, "SiglipVisionModel"), 0, 32),
    "ViTModel": (tiny_vit, 1, 32),
    "ViTForImageClassification": (lambda path: tiny_vit(path, "ViTForImageClassification"), 1, 32),
    "Dinov2WithRegistersModel": (tiny_dino, 5, 32),
}
"""Class of the files -> maker, tokens before the patches, width of the embedding."""


def image(width: int = 60, height: int = 40) -> PIL.Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def load(directory: Path, **keys: Any) -> VisionTower:
    return load_vision(ModelSpec(id=str(directory), **{"dtype": "float32", **keys}), "cpu")


@pytest.fixture(scope="module", params=MADE)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, MADE[request.param][0](tmp_path_factory.mktemp(request.param))


def everything(tower: VisionTower, pixels_BCHW: torch.Tensor) -> dict[str, torch.Tensor]:
    return run_until_captured(tower, tower.named_sites(), {"pixel_values": pixels_BCHW})


def reference(kind: str, directory: Path, pixels_BCHW: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """The record of transformers' own vision model, and the image embedding."""
    model: Any = getattr(import_transformers(), kind).from_pretrained(directory).eval().requires_grad_(False)
    with torch.inference_mode():
        if kind in ("CLIPModel", "SiglipModel"):
            record = model.vision_model(pixel_values=pixels_BCHW, output_hidden_states=True)
            return record, model.get_image_features(pixel_values=pixels_BCHW).pooler_output
        record = model.base_model(pixel_values=pixels_BCHW, output_hidden_states=True)
        if kind == "CLIPVisionModelWithProjection":
            return record, model(pixel_values=pixels_BCHW).image_embeds
    pooled = record.pooler_output
    return record, record.last_hidden_state[:, 0] if pooled is None else pooled


def test_every_site_equals_its_own_hidden_states(made: tuple[str, Path]) -> None:
    kind, directory = made
    tower = load(directory)
    _, prefix, width = MADE[kind]
    assert (tower.prefix, tower.has_cls, tower.size) == (prefix, prefix > 0, 24)
    pixels_BCHW = torch.stack([tower.preprocess(image()), tower.preprocess(image(30, 50))])
    values = everything(tower, pixels_BCHW)
    record, embedding = reference(kind, directory, pixels_BCHW)
    for index in range(3):
        assert torch.equal(values[f"layers.{index}.resid_pre"], record.hidden_states[index])
        assert torch.equal(values[f"layers.{index}.resid_post"], record.hidden_states[index + 1])
    assert torch.equal(values["final"], record.last_hidden_state)
    assert torch.equal(values["pooled"], embedding)
    assert values["pooled"].shape == (2, width)
    torch.testing.assert_close(values["pooled_normalized"], embedding / embedding.norm(dim=1, keepdim=True))
    assert {values[site.name].shape for site in tower.named_sites()[:-2]} == {(2, 9 + prefix, 32)}


def test_parts_are_there_where_they_add_up(made: tuple[str, Path]) -> None:
    kind, directory = made
    tower = load(directory)
    scaled = kind.startswith("Dino")
    parts = [part for part in PARTS if not (scaled and part in ("attn_out", "mlp_out"))]
    layers = [f"layers.{index}.{part}" for index in range(3) for part in parts]
    assert [site.name for site in tower.named_sites()] == ["embed", *layers, "final", "pooled", "pooled_normalized"]
    if scaled:
        return
    values = everything(tower, tower.preprocess(image())[None])
    before, attention, _, mlp, after = (values[f"layers.1.{part}"] for part in PARTS)
    torch.testing.assert_close(before + attention + mlp, after)


def test_the_pass_stops_after_the_deepest_site(tmp_path: Path) -> None:
    tower = load(tiny_clip(tmp_path))
    (site,) = resolve_sites(tower, ["layers.40%.attn_out"])["layers.40%.attn_out"]
    ran: list[str] = []
    for path, module in tower.named_modules():
        module.register_forward_pre_hook(lambda _module, _args, path=path: ran.append(path))
    values = run_until_captured(tower, [site], {"pixel_values": tower.preprocess(image())[None]})
    assert site.name == "layers.1.attn_out"
    assert list(values) == [site.name]
    layers = [path for path in ran if ".layers." in path]
    assert layers
    assert not [path for path in layers if ".layers.2" in path or ".layers.1.mlp" in path]
    assert "pooled" not in ran


def test_names_resolve(tmp_path: Path) -> None:
    tower = load(tiny_clip(tmp_path))
    names = ["layers.*.resid_post", "layers.100%.mlp_in", "body.vision_model.pre_layrnorm:out", "pooled"]
    written = {name: [site.name for site in sites] for name, sites in resolve_sites(tower, names).items()}
    assert written["layers.*.resid_post"] == [f"layers.{index}.resid_post" for index in range(3)]
    assert written["layers.100%.mlp_in"] == ["layers.2.mlp_in"]
    values = run_until_captured(
        tower, resolve_sites(tower, names[2:3])[names[2]], {"pixel_values": tower.preprocess(image())[None]}
    )
    assert torch.equal(values[names[2]], everything(tower, tower.preprocess(image())[None])["layers.0.resid_pre"])
    with pytest.raises(UserError, match=r"no such site; this model has layers.0 to layers.2, each with .*; pooled"):
        resolve_sites(tower, ["pooling"])
    with pytest.raises(UserError, match="this model has layers 0 to 2"):
        resolve_sites(tower, ["layers.7.resid_pre"])


def test_images_are_preprocessed_as_the_model_wants(tmp_path: Path) -> None:
    """CLIP: the shorter side to 24 pixels, bicubic, the middle of it, then mean and deviation of each colour."""
    tower = load(tiny_clip(tmp_path))
    resized = np.asarray(image(60, 40).resize((36, 24), PIL.Image.Resampling.BICUBIC))[:, 6:30]
    mean, deviation = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    expected = torch.from_numpy((resized / 255 - mean) / deviation).permute(2, 0, 1).float()
    pixels_CHW = tower.preprocess(image(60, 40))
    torch.testing.assert_close(pixels_CHW, expected, rtol=0, atol=1e-5)
    grey = image().convert("L")
    assert torch.equal(tower.preprocess(grey), tower.preprocess(grey.convert("RGB")))


def test_dtype_is_that_of_weights_and_activations(tmp_path: Path) -> None:
    tower = load(tiny_siglip(tmp_path), dtype="bfloat16")
    values = everything(tower, tower.preprocess(image())[None])
    assert {value.dtype for value in values.values()} == {torch.bfloat16}
    assert "layers.2.mlp_out" in values  # rounding does not look like a scale


def test_a_pooler_that_the_files_lack_is_not_made_up(tmp_path: Path) -> None:
    directory = tiny_vit(tmp_path)
    weights = safetensors.torch.load_file(directory / "model.safetensors")
    kept = {key: value for key, value in weights.items() if not key.startswith("pooler")}
    assert len(kept) < len(weights)
    safetensors.torch.save_file(kept, directory / "model.safetensors", {"format": "pt"})
    tower = load(directory)
    values = everything(tower, tower.preprocess(image())[None])
    assert torch.equal(values["pooled"], values["final"][:, 0])


def test_without_pooler_and_class_token_the_embedding_is_the_mean(tmp_path: Path) -> None:
    tower = load(tiny_siglip(tmp_path, "SiglipVisionModel", vision_use_head=False))
    values = everything(tower, tower.preprocess(image())[None])
    torch.testing.assert_close(values["pooled"], values["final"].mean(1))


def test_towers_without_tokens_have_an_embedding_only(tmp_path: Path) -> None:
    transformers = import_transformers()
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2])
    transformers.ResNetModel(config).save_pretrained(tmp_path)
    transformers.ConvNextImageProcessorPil(size={"shortest_edge": 24}).save_pretrained(tmp_path)
    tower = load(tmp_path)
    assert [site.name for site in tower.named_sites()] == ["pooled", "pooled_normalized"]
    assert (tower.prefix, tower.has_cls) == (0, False)
    assert everything(tower, tower.preprocess(image())[None])["pooled"].shape == (1, 16)


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gpt2 is no vision model .* expected CLIP, SigLIP, ViT, DINOv2"):
        load(tiny_gpt2(tmp_path / "text"))
    import_transformers().Siglip2VisionModel(
        import_transformers().Siglip2VisionConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    ).save_pretrained(tmp_path / "patches")
    with pytest.raises(UserError, match="siglip2_vision_model is no vision model whose images all have one size"):
        load(tmp_path / "patches")
    with pytest.raises(UserError, match="backend: transformer_lens runs no vision model"):
        load(tmp_path / "text", backend="transformer_lens")
    directory = tiny_clip(tmp_path / "clip")
    weights = safetensors.torch.load_file(directory / "model.safetensors")
    del weights["visual_projection.weight"]
    safetensors.torch.save_file(weights, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"1 of its weights are not in its files, such as visual_projection.weight"):
        load(directory)
    directory = tiny_vit(tmp_path / "vit")
    (directory / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"its image processor \(preprocessor_config.json\) cannot be loaded"):
        load(directory)
    processor = import_transformers().ViTImageProcessorPil(size={"height": 32, "width": 32})
    processor.save_pretrained(directory)
    with pytest.raises(UserError, match=r"its vision tower cannot be run: .*32.*24"):
        load(directory)


def test_facts_tell_how_images_are_preprocessed(tmp_path: Path) -> None:
    directory = tiny_vit(tmp_path)
    facts = model_facts(ModelSpec(id=str(directory)))
    assert set(facts["files"]) == {"config.json", "preprocessor_config.json"}
    processor = json.loads((directory / "preprocessor_config.json").read_text())
    (directory / "preprocessor_config.json").write_text(json.dumps(processor | {"image_mean": [0, 0, 0]}))
    assert model_facts(ModelSpec(id=str(directory))) != facts


TEXTS = {
    "CLIPModel": tiny_clip,
    "CLIPTextModel": lambda path: tiny_clip(path, "CLIPTextModel"),
    "SiglipModel": tiny_siglip,
}


@pytest.mark.parametrize("kind", TEXTS)
def test_text_towers(kind: str, tmp_path: Path) -> None:
    directory = TEXTS[kind](tmp_path)
    tower: Any = load_model(ModelSpec(id=str(directory), dtype="float32"), "cpu")
    ids_BT = torch.arange(2, 28).view(2, 13)
    ids_BT[0, 12], ids_BT[1, 7] = 513 % tower.config.vocab_size, 513 % tower.config.vocab_size
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[1, 8:] = 0
    widths = list_sites(tower)
    layers = [f"layers.{index}.{part}" for index in range(3) for part in PARTS]
    assert [name for name, width in widths.items() if width == 24] == ["embed", *layers, "final"]
    assert list(widths)[-2:] == ["pooled", "pooled_normalized"]
    assert context_limit(tower) == (16 if kind == "SiglipModel" else 32)
    values = run_until_captured(tower, tower.named_sites(), text_inputs(tower, ids_BT, mask_BT))

    model: Any = getattr(import_transformers(), kind).from_pretrained(directory).eval().requires_grad_(False)
    with torch.inference_mode():
        inputs = {"input_ids": ids_BT, "attention_mask": mask_BT}
        record = getattr(model, "text_model", model)(**inputs, output_hidden_states=True)
        own = model.get_text_features(**inputs).pooler_output if kind != "CLIPTextModel" else record.pooler_output
    for index in range(3):
        assert torch.equal(values[f"layers.{index}.resid_pre"], record.hidden_states[index])
        assert torch.equal(values[f"layers.{index}.resid_post"], record.hidden_states[index + 1])
    assert torch.equal(values["final"], record.last_hidden_state)
    assert torch.equal(values["pooled"], own)
    torch.testing.assert_close(values["pooled_normalized"], own / own.norm(dim=1, keepdim=True))
    sites = resolve_sites(tower, ["layers.100%.resid_post"])["layers.100%.resid_post"]
    shifted = capture(tower, sites, ids_BT[1:].roll(5, 1), mask_BT[1:].roll(5, 1))["layers.2.resid_post"]
    torch.testing.assert_close(shifted[0, 5:], record.hidden_states[3][1, :8])
    with pytest.raises(UserError, match=r"pooled: its shape .* is not one vector per token"):
        capture(tower, resolve_sites(tower, ["pooled"])["pooled"], ids_BT, mask_BT)


def test_tokens_of_clip_end_words(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(ModelSpec(id=str(tiny_clip(tmp_path))))
    table = token_bytes(tokenizer)
    ids = tokenizer("An é, too", add_special_tokens=False)["input_ids"]
    assert b"".join(table[id_] for id_ in ids).decode() == "an é , too "
    assert table[tokenizer.eos_token_id] == b"<|endoftext|>"
