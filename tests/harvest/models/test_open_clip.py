"""The open_clip backend, against open_clip itself."""

import json
import sys
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import numpy as np
import PIL.Image
import pytest
import safetensors.torch
import torch

from harvest.config import CorpusSpec, ModelSpec, check_spec
from harvest.corpora.prepare import prepare
from harvest.errors import UserError
from harvest.models.capture import run_until_captured, text_inputs
from harvest.models.load import context_limit, load_model, load_tokenizer, model_facts
from harvest.models.open_clip_towers import import_open_clip, make_model
from harvest.models.sites import resolve_sites
from harvest.models.vision import VisionTower, load_vision
from harvest.models.vocabulary import token_bytes
from tests.tiny import tiny_open_clip

PARTS = ["resid_pre", "attn_out", "mlp_in", "mlp_out", "resid_post"]
SCALED = ["resid_pre", "mlp_in", "resid_post"]


def image() -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def spec_of(architecture: dict[str, Any] | None = None, **keys: Any) -> ModelSpec:
    made = {"architecture": architecture or tiny_open_clip(), "random_seed": 0} if "id" not in keys else {}
    return ModelSpec(**{"id": "tiny", "backend": "open_clip", "dtype": "float32", **made, **keys})


def everything(tower: VisionTower) -> dict[str, torch.Tensor]:
    return run_until_captured(tower, tower.named_sites(), {"pixel_values": tower.preprocess(image())[None]})


@pytest.mark.parametrize(
    ("vision", "parts", "others", "tokens"),
    [
        ({}, PARTS, ["embed", "final"], 10),
        ({"image_size": [16, 24]}, PARTS, ["embed", "final"], 7),
        ({"pool_type": "avg", "final_ln_after_pool": True}, PARTS, ["embed"], 10),
        ({"ls_init_value": 0.1}, SCALED, ["embed", "final"], 10),
        ({"scale_attn": True}, SCALED, ["embed", "final"], 10),
        ({"attentional_pool": True, "attn_pooler_heads": 4}, PARTS, ["embed"], 10),
        ({"layers": [1, 1, 1, 1], "width": 8, "image_size": 64}, [], [], 0),
        ({"timm_model_name": "test_vit", "timm_pool": "avg", "image_size": 160}, PARTS, ["embed", "final"], 101),
        ({"timm_model_name": "test_vit3", "timm_pool": "avg", "image_size": 160}, SCALED, ["embed", "final"], 101),
        ({"timm_model_name": "test_resnet", "timm_pool": "avg", "image_size": 160}, [], [], 0),
    ],
)
def test_image_towers(vision: dict[str, Any], parts: list[str], others: list[str], tokens: int) -> None:
    spec = spec_of(tiny_open_clip(**vision))
    tower, model = load_vision(spec, "cpu"), make_model(spec)
    size = vision.get("image_size", 24)
    assert tower.size == (tuple(size) if isinstance(size, list) else size)
    assert tower.prefix == min(tokens, 1)
    values = everything(tower)
    layers = {name.split(".")[1] for name in values if name.startswith("layers")}
    expected = {f"layers.{index}.{part}" for index in layers for part in parts}
    assert set(values) == {*expected, *others, "pooled", "pooled_normalized"}
    assert {value.shape[:2] for name, value in values.items() if "pooled" not in name} <= {(1, tokens)}
    with torch.inference_mode():
        pixels_BCHW = tower.preprocess(image())[None]
        assert torch.equal(values["pooled"], model.encode_image(pixels_BCHW))
        assert torch.equal(values["pooled_normalized"], model.encode_image(pixels_BCHW, normalize=True))
    if parts == PARTS:
        before, attention, _, mlp, after = (values[f"layers.1.{part}"] for part in PARTS)
        torch.testing.assert_close(before + attention + mlp, after)
        assert (before - after).norm() > 0.01 * before.norm()


def test_the_residual_stream_is_that_of_open_clip() -> None:
    tower, model = load_vision(spec_of(), "cpu"), make_model(spec_of())
    values, pixels_BCHW = everything(tower), tower.preprocess(image())[None]
    assert (tower.prefix, tower.has_cls, tower.size) == (1, True, 24)
    with torch.inference_mode():
        own = model.visual.forward_intermediates(pixels_BCHW, output_fmt="NLC", output_extra_tokens=True)
        for index, (patches, prefix) in enumerate(
            zip(own["image_intermediates"], own["image_intermediates_prefix"], strict=True)
        ):
            assert torch.equal(values[f"layers.{index}.resid_post"], torch.cat([prefix, patches], dim=1))
        assert torch.equal(values["layers.0.resid_pre"], model.visual.ln_pre(values["embed"]))
        assert torch.equal(values["final"], model.visual.ln_post(values["layers.2.resid_post"]))


def test_the_pass_stops_after_the_deepest_site() -> None:
    tower = load_vision(spec_of(), "cpu")
    ran: list[str] = []
    for path, module in tower.named_modules():
        module.register_forward_pre_hook(lambda _module, _args, path=path: ran.append(path))
    sites = resolve_sites(tower, ["layers.40%.attn_out"])["layers.40%.attn_out"]
    run_until_captured(tower, sites, {"pixel_values": tower.preprocess(image())[None]})
    layers = {path.split("resblocks.")[1] for path in ran if "resblocks." in path}
    assert {layer[0] for layer in layers} == {"0", "1"}
    assert "1.mlp" not in layers


def test_a_whole_architecture_by_its_name() -> None:
    tower = load_vision(ModelSpec(id="ViT-B-32", backend="open_clip", random_seed=0), "cpu")
    assert (tower.prefix, tower.has_cls, tower.size) == (1, True, 224)
    (site,) = resolve_sites(tower, ["layers.11.resid_post"])["layers.11.resid_post"]
    values = run_until_captured(
        tower, [site, *tower.named_sites()[-2:]], {"pixel_values": tower.preprocess(image())[None]}
    )
    assert values["layers.11.resid_post"].shape == (1, 50, 768)
    assert values["pooled"].shape == (1, 512)
    assert {value.dtype for value in values.values()} == {torch.bfloat16}
    torch.testing.assert_close(values["pooled_normalized"].float().norm(), torch.tensor(1.0), atol=0.01, rtol=0)


def test_images_are_preprocessed_as_open_clip_does() -> None:
    pixels_CHW = load_vision(spec_of(), "cpu").preprocess(image())
    resized = np.asarray(image().resize((36, 24), PIL.Image.Resampling.BICUBIC))[:, 6:30]
    mean, deviation = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    expected = torch.from_numpy((resized / 255 - mean) / deviation).permute(2, 0, 1).float()
    torch.testing.assert_close(pixels_CHW, expected, rtol=0, atol=1e-5)


def test_a_seed_stands_for_the_same_weights_always() -> None:
    before = torch.random.get_rng_state()
    first = everything(load_vision(spec_of(), "cpu"))["pooled"]
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(everything(load_vision(spec_of(), "cpu"))["pooled"], first)
    assert not torch.equal(everything(load_vision(spec_of(random_seed=1), "cpu"))["pooled"], first)
    facts = model_facts(spec_of())
    assert facts["random_seed"] == 0
    assert facts["open_clip"] == import_open_clip().__version__
    assert facts["architecture"] == tiny_open_clip()
    json.dumps(facts)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A model as open_clip lays it out, whose images have another mean."""
    folder = tmp_path / "saved"
    folder.mkdir()
    config = {"model_cfg": tiny_open_clip(), "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    weights = make_model(spec_of(random_seed=5)).state_dict()
    safetensors.torch.save_file(weights, folder / "open_clip_model.safetensors")
    return folder


def test_a_directory(directory: Path) -> None:
    spec = spec_of(id=str(directory))
    tower, random = load_vision(spec, "cpu"), load_vision(spec_of(random_seed=5), "cpu")
    pixels_BCHW = tower.preprocess(image())[None]
    inputs = {"pixel_values": pixels_BCHW}
    ours, theirs = (run_until_captured(each, each.named_sites(), inputs) for each in (tower, random))
    assert torch.equal(ours["pooled"], theirs["pooled"])
    model, _, preprocess = import_open_clip().create_model_and_transforms(f"local-dir:{directory}")
    assert torch.equal(pixels_BCHW[0], preprocess(image()))
    with torch.inference_mode():
        assert torch.equal(ours["pooled"], model.eval().encode_image(pixels_BCHW))
    facts = model_facts(spec)
    assert set(facts["weights"]["open_clip_model.safetensors"]) == {"size", "sha256_of_ends"}
    assert str(directory) not in json.dumps(facts)
    with pytest.raises(UserError, match="a directory has its own weights; leave out pretrained and random_seed"):
        load_vision(spec_of(id=str(directory), random_seed=0), "cpu")
    (directory / "open_clip_model.safetensors").rename(directory / "open_clip_pytorch_model.bin")
    with pytest.raises(UserError, match=r"has no open_clip_model.safetensors; .*pickled weights are never loaded"):
        load_vision(spec, "cpu")


def list_tag(monkeypatch: pytest.MonkeyPatch, **tag: Any) -> None:
    """An architecture `tiny` with one tag in open_clip's lists."""
    open_clip = import_open_clip()
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", tiny_open_clip())
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", {"a_tag": tag})


def test_a_file_of_weights(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    list_tag(monkeypatch)
    file = directory / "open_clip_model.safetensors"
    spec = spec_of(id="tiny", pretrained=str(file))
    expected = everything(load_vision(spec_of(random_seed=5), "cpu"))["pooled"]
    assert torch.equal(everything(load_vision(spec, "cpu"))["pooled"], expected)
    assert model_facts(spec)["weights"] == model_facts(spec_of(id=str(directory)))["weights"]
    pickled = tmp_path / "weights.pt"
    pickled.write_bytes(b"never read")
    with pytest.raises(UserError, match=r"weights.pt: give a .safetensors file; pickled weights are never loaded"):
        load_vision(spec_of(id="tiny", pretrained=str(pickled)), "cpu")
    weights = safetensors.torch.load_file(file)
    del weights["visual.proj"]
    safetensors.torch.save_file(weights, file)
    with pytest.raises(UserError, match=r"open_clip cannot make it: .*visual.proj"):
        load_vision(spec, "cpu")


@pytest.mark.parametrize(
    ("listed", "asked_for"),
    [
        ("owner/name/", ("owner/name", "open_clip_model.safetensors")),
        ("owner/name/weights.bin", ("owner/name", "weights.safetensors")),
    ],
)
def test_of_a_tag_only_safetensors_are_downloaded(
    directory: Path, monkeypatch: pytest.MonkeyPatch, listed: str, asked_for: tuple[str, str]
) -> None:
    list_tag(monkeypatch, hf_hub=listed, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), url="https://nowhere.invalid/a.pt")
    asked: list[tuple[str, str]] = []

    def download(repository: str, name: str) -> str:
        asked.append((repository, name))
        return str(directory / "open_clip_model.safetensors")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    spec = spec_of(id="tiny", pretrained="a-tag")
    tower = load_vision(spec, "cpu")
    assert set(asked) == {asked_for}
    assert tower.preprocess(PIL.Image.new("RGB", (30, 30), (255, 0, 0)))[:, 0, 0].tolist() == [1, -1, -1]
    assert model_facts(spec)["pretrained"] == "tiny a-tag"

    def absent(*_: str) -> str:
        response = httpx.Response(404, request=httpx.Request("GET", "https://nowhere.invalid"))
        raise huggingface_hub.errors.RemoteEntryNotFoundError("404", response=response)

    def unreachable(*_: str) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("offline")

    for failure, message in (
        (absent, "a-tag has no safetensors; pickled"),
        (unreachable, "run `hf download owner/name "),
    ):
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", failure)
        with pytest.raises(UserError, match=message):
            load_vision(spec, "cpu")


def test_other_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    list_tag(monkeypatch, url="https://nowhere.invalid/a.pt")
    with pytest.raises(UserError, match="pretrained: a_tag has no safetensors"):
        load_vision(spec_of(id="tiny", pretrained="a_tag"), "cpu")
    with pytest.raises(UserError, match="pretrained: b: neither a file nor a tag of tiny; its tags are a_tag"):
        load_vision(spec_of(id="tiny", pretrained="b"), "cpu")
    list_tag(monkeypatch, quick_gelu=True, hf_hub="owner/name/")
    with pytest.raises(UserError, match="a_tag was trained with QuickGELU; write id: tiny-quickgelu"):
        load_vision(spec_of(id="tiny", pretrained="a_tag"), "cpu")
    with pytest.raises(UserError, match=r"model tiny: give pretrained, a tag or a .safetensors file, or random_seed"):
        load_vision(spec_of(id="tiny"), "cpu")
    with pytest.raises(UserError, match="model ViT-C-3: neither a directory nor an architecture of open_clip"):
        load_vision(spec_of(id="ViT-C-3", random_seed=0), "cpu")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"backend": "transformers", "pretrained": "a"}, "pretrained is for backend: open_clip, not transformers"),
        ({"backend": "transformer_lens", "random_seed": 0}, "random_seed is for backend: open_clip"),
        ({"pretrained": "a", "random_seed": 0}, "pretrained or random_seed, not both"),
        ({"pretrained": "a", "architecture": {}}, "architecture needs random_seed"),
        ({"architecture": tiny_open_clip()}, "architecture needs random_seed"),
        ({"architecture": {"embed_dim": 2}, "random_seed": 0}, "architecture needs embed_dim, vision_cfg and text_cfg"),
        ({"random_seed": -1}, "random_seed: -1: Input should be greater than or equal to 0"),
        ({"gguf": "a.gguf"}, "gguf is not for backend: open_clip"),
        ({"device_map": "auto"}, "device_map is not for backend: open_clip"),
    ],
)
def test_keys_that_do_not_go_together(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_spec({"id": "a", "backend": "open_clip", **keys}, ModelSpec)


def test_an_architecture_that_open_clip_does_not_understand() -> None:
    with pytest.raises(UserError, match=r"open_clip cannot make it: .*weight"):
        load_vision(spec_of(tiny_open_clip(weight=3)), "cpu")


def test_a_release_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match=r"backend: open_clip cannot be imported .*pip install"):
        load_vision(spec_of(), "cpu")


@pytest.mark.parametrize(
    ("text", "custom"),
    [
        ({}, False),
        ({"pool_type": "eos", "eos_id": 7}, False),
        ({"no_causal_mask": True, "pool_type": "last", "proj_bias": True}, True),
    ],
)
def test_text_towers(text: dict[str, Any], custom: bool) -> None:
    spec = spec_of(tiny_open_clip(text) | ({"custom_text": True} if custom else {}))
    tower, model = load_model(spec, "cpu"), make_model(spec)
    ids_BT = torch.arange(32).view(2, 16)
    values = run_until_captured(tower, tower.named_sites(), text_inputs(tower, ids_BT, torch.ones_like(ids_BT)))
    assert list(values) == [
        "embed",
        *(f"layers.{index}.{part}" for index in range(2) for part in PARTS),
        "final",
        "pooled",
        "pooled_normalized",
    ]
    before, attention, _, mlp, after = (values[f"layers.1.{part}"] for part in PARTS)
    torch.testing.assert_close(before + attention + mlp, after)
    with torch.inference_mode():
        torch.testing.assert_close(values["pooled"], model.encode_text(ids_BT), rtol=0, atol=1e-6)
        normalized = model.encode_text(ids_BT, normalize=True)
        torch.testing.assert_close(values["pooled_normalized"], normalized, rtol=0, atol=1e-6)
    assert context_limit(tower) == 16
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[1, 9:] = 0
    padded = run_until_captured(tower, tower.named_sites(), text_inputs(tower, ids_BT, mask_BT))["final"]
    short_BT = ids_BT[1:, :9]
    alone = run_until_captured(tower, tower.named_sites(), text_inputs(tower, short_BT, torch.ones_like(short_BT)))
    torch.testing.assert_close(padded[1, :9], alone["final"][0], rtol=1e-4, atol=1e-5)
    shifted = text_inputs(tower, ids_BT[1:].roll(7, 1), mask_BT[1:].roll(7, 1))
    late = run_until_captured(tower, tower.named_sites(), shifted)["final"]
    torch.testing.assert_close(late[0, 7:], alone["final"][0], rtol=1e-4, atol=1e-5)


def test_a_text_tower_of_another_kind() -> None:
    spec = spec_of(tiny_open_clip({"embed_cls": True}) | {"custom_text": True})
    with pytest.raises(UserError, match="its text tower, a TextTransformer, is none of open_clip's own that"):
        load_model(spec, "cpu")
    assert load_vision(spec, "cpu").prefix == 1


def test_token_ids_are_those_of_open_clip(tmp_path: Path) -> None:
    spec = ModelSpec(id="ViT-B-32", backend="open_clip", random_seed=0)
    tokenizer, own = load_tokenizer(spec), import_open_clip().get_tokenizer("ViT-B-32")
    texts = ["A photo of a “café” &amp; 2,500 cats!", "ÅNGSTRÖM's 你好 🤗 don't", "  a\n\tb_c  "]
    for text, ids in zip(texts, tokenizer(texts)["input_ids"], strict=True):
        padded = own([text])[0].tolist()
        assert [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id] == padded[: len(ids) + 2]
        assert not any(padded[len(ids) + 2 :])
    table = token_bytes(tokenizer)
    assert len(table) == len(tokenizer) == 49408
    assert b"".join(table[id_] for id_ in tokenizer(texts)["input_ids"][1]).decode() == "ångström 's 你好 🤗 don 't "
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert not set(special) & set(tokenizer(["a <start_of_text> b <end_of_text>"])["input_ids"][0])

    (tmp_path / "a.txt").write_text("The cat sat on the mat. " * 5)
    facts = prepare(CorpusSpec(files=str(tmp_path / "a.txt"), tokens=20, context=8), tokenizer, tmp_path / "corpus")
    assert facts["complete"]


def test_a_tokenizer_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it gives is compared in test_text_source.py."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else it tries for most of a minute
    spec = ModelSpec(id="ViT-B-16-SigLIP", backend="open_clip", random_seed=0)
    with pytest.raises(UserError, match="timm/ViT-B-16-SigLIP: no such directory, not in the Hugging Face cache"):
        load_tokenizer(spec)
    odd = spec_of(tiny_open_clip({"hf_tokenizer_name": "a/b", "tokenizer_kwargs": {"tokenizer_mode": "clips"}}))
    with pytest.raises(UserError, match="its tokenizer has tokenizer_mode, which only open_clip itself understands"):
        load_tokenizer(odd)
