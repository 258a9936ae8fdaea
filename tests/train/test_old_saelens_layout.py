"""The layout from before SAELens 6, which most dictionaries on the Hub have: what SAELens makes of it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from harvest.errors import UserError
from tests.train.saelens_cases import FIXTURES
from train.files import load, save

OLD = {
    "gated": "gated",
    "jumprelu": "jumprelu",
    "standard": "relu",
    "standard_constant_norm": "relu",
    "standard_normalized": "relu",
    "topk": "topk",
    "topk_layer_norm": "topk",
}


def edited(name: str, folder: Path, **keys: Any) -> Path:
    """A copy of a dictionary with other keys in its `cfg.json`; one that becomes None goes."""
    shutil.copytree(FIXTURES / "saelens-old" / name, folder / name)
    cfg = json.loads((folder / name / "cfg.json").read_text()) | keys
    (folder / name / "cfg.json").write_text(json.dumps({key: value for key, value in cfg.items() if value is not None}))
    return folder / name


def change_weights(folder: Path, **tensors: Tensor) -> dict[str, Tensor]:
    file = folder / "sae_weights.safetensors"
    changed = {**load_file(file), **tensors}
    save_file(changed, file)
    return changed


@torch.inference_mode()
def same_as_recorded(folder: Path, name: str) -> None:
    dictionary, _ = load(folder)
    answers = load_file(FIXTURES / "saelens-old" / name / "expected.safetensors")
    assert 0 < float((answers["latents"] > 0).float().mean()) < 1
    latents = dictionary.encode(answers["x"]).dense()
    torch.testing.assert_close(latents, answers["latents"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dictionary(answers["x"]), answers["output"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", OLD)
def test_old_dictionaries_are_what_saelens_makes_of_them(tmp_path: Path, name: str) -> None:
    folder = FIXTURES / "saelens-old" / name
    same_as_recorded(folder, name)
    dictionary, cfg = load(folder)
    assert "sae_lens_version" not in (folder / "cfg.json").read_text()
    assert cfg["metadata"]["hook_name"] == "blocks.3.hook_resid_pre"
    assert dictionary.centered == (name != "jumprelu")
    save(dictionary, tmp_path, {})
    assert json.loads((tmp_path / "cfg.json").read_text())["metadata"]["sparsity"]["method"] == OLD[name]
    same_as_recorded(tmp_path, name)


def test_every_old_fixture_is_used() -> None:
    assert {path.name for path in (FIXTURES / "saelens-old").iterdir()} == set(OLD)


@pytest.mark.parametrize("keys", [{"normalize_activations": False}, {"sae_lens_version": "5.9.1"}, {"metadata": {}}])
def test_what_old_releases_wrote_differently(tmp_path: Path, keys: dict[str, Any]) -> None:
    same_as_recorded(edited("gated", tmp_path, **keys), "gated")


def test_heads_lie_side_by_side(tmp_path: Path) -> None:
    """SAELens flattens `(heads, width of a head)` before it encodes; a store has them flat."""
    same_as_recorded(edited("gated", tmp_path, hook_name="blocks.3.attn.hook_z"), "gated")


@torch.inference_mode()
def test_what_finetuning_left(tmp_path: Path) -> None:
    """Versions 3 to 5: each latent times its factor before the decoder. Version 6 opens no such dictionary."""
    folder = edited("standard", tmp_path, finetuning_scaling_factor=True)
    factor_F = torch.linspace(0.5, 2, 40)
    tensors = change_weights(folder, scaling_factor=factor_F)
    x_BP = torch.randn(9, 12, generator=torch.Generator().manual_seed(3))
    latents_BF = torch.relu((x_BP - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"])
    dictionary, _ = load(folder)
    torch.testing.assert_close(dictionary.encode(x_BP).dense(), latents_BF, rtol=1e-5, atol=1e-5)
    expected = (latents_BF * factor_F) @ tensors["W_dec"] + tensors["b_dec"]
    torch.testing.assert_close(dictionary(x_BP), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"activation_fn_str": "tanh-relu"}, "activation_fn: tanh-relu: not understood; these are: relu, topk"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": None}, "k is None; it must be between 1 and d_sae, 40"),
        ({"normalize_activations": "batch_norm"}, 'normalize_activations: "batch_norm"'),
        ({"d_sae": None}, "d_sae: missing"),
        ({"architecture": "temporal"}, "'temporal' is not understood"),
        ({"finetuning_scaling_factor": False}, "scaling_factor: not 1 for each latent"),
        ({"finetuning_scaling_factor": True, "d_sae": 41}, "scaling_factor: not 1 for each latent"),
    ],
)
def test_what_cannot_be_read_of_the_old_is_refused(tmp_path: Path, keys: dict[str, Any], says: str) -> None:
    folder = edited("standard", tmp_path, **keys)
    change_weights(folder, scaling_factor=torch.full((40,), 2.0))
    with pytest.raises(UserError, match=says) as caught:
        load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
