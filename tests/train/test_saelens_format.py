"""The dictionary directory: what SAELens saved loads here, what we save loads there, as the same function."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from harvest.errors import UserError
from tests.train.saelens_cases import (
    ALL,
    FIXTURES,
    LATENTS,
    OURS_ALONE,
    SAELENS,
    SHARED,
    ask_saelens,
    case,
    inputs,
    write_case,
)
from train.dictionary import Dictionary
from train.files import load, save
from train.kernels import Pattern, pattern_of
from train.sparsity import SPARSITIES, Sparsity

THEIRS = {
    "batchtopk_trained": "jumprelu",
    "gated": "gated",
    "gated_input_as_it_is": "gated",
    "jumprelu": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
    "jumprelu_transcoder": "jumprelu",
    "skip_transcoder": "relu",
    "standard": "relu",
    "standard_apply_b_dec": "relu",
    "standard_input_as_it_is": "relu",
    "standard_normalized_in_training": "relu",
    "topk": "topk",
    "topk_in_decoder_norms": "topk",
    "transcoder": "relu",
}


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def same_function(dictionary: Dictionary, answers: dict[str, Tensor]) -> None:
    x_BP = answers["x"]
    close(dictionary.encode(x_BP).dense(), answers["latents"])
    close(dictionary(x_BP), answers["output"])


@torch.inference_mode()
def answers_of(dictionary: Dictionary, x_BP: Tensor) -> dict[str, Tensor]:
    return {"x": x_BP, "latents": dictionary.encode(x_BP).dense(), "output": dictionary(x_BP)}


@pytest.mark.parametrize("name", THEIRS)
def test_what_saelens_saved_loads_here(tmp_path: Path, name: str) -> None:
    folder = FIXTURES / "saelens" / name
    dictionary, cfg = load(folder)
    assert type(dictionary.sparsity) is SPARSITIES[THEIRS[name]]
    assert not dictionary.training
    assert cfg == json.loads((folder / "cfg.json").read_text())
    answers = load_file(folder / "expected.safetensors")
    assert 0 < float((answers["latents"] > 0).float().mean()) < 1
    same_function(dictionary, answers)

    save(dictionary, tmp_path, cfg["metadata"])
    assert "NaN" not in (tmp_path / "cfg.json").read_text(), "an l0 that nobody knows is null: NaN is no JSON"
    same_function(load(tmp_path)[0], answers)


def test_every_fixture_is_used() -> None:
    assert {path.name for path in (FIXTURES / "saelens").iterdir()} == set(THEIRS)
    assert {path.name for path in (FIXTURES / "ours").iterdir()} == set(SHARED)


@pytest.mark.parametrize("name", SHARED)
def test_what_we_save_is_what_saelens_opened(tmp_path: Path, name: str) -> None:
    """Recorded: the files that `save` wrote, and SAELens's answers from them."""
    recorded = FIXTURES / "ours" / name
    write_case(name, tmp_path)
    assert (tmp_path / "cfg.json").read_text() == (recorded / "cfg.json").read_text()
    found, expected = (load_file(folder / "sae_weights.safetensors") for folder in (tmp_path, recorded))
    assert found.keys() == expected.keys()
    for tensor in expected:
        torch.testing.assert_close(found[tensor], expected[tensor], rtol=1e-6, atol=1e-6)
    same_function(case(name), load_file(recorded / "expected.safetensors"))


def test_saelens_opens_what_we_save(tmp_path: Path) -> None:
    if not SAELENS.exists():
        pytest.skip("SAELens is not installed: `make peers` does it; its recorded answers are checked all the same")
    for name in SHARED:
        write_case(name, tmp_path / name)
    ask_saelens([tmp_path / name for name in SHARED])
    for name in SHARED:
        same_function(case(name), load_file(tmp_path / name / "expected.safetensors"))


@pytest.mark.parametrize("name", ALL)
def test_round_trip(tmp_path: Path, name: str) -> None:
    dictionary = case(name)
    metadata = {"reads": ["layers.3.resid_post"], "store": "0123abc", "note": "ünïcode"}
    save(dictionary, tmp_path / "new" / "folder", metadata)
    found, cfg = load(tmp_path / "new" / "folder")
    assert not found.training
    assert found.sparsity.l0 == 4
    same_function(found, answers_of(dictionary, inputs(name)))
    assert metadata.items() <= cfg["metadata"].items()
    assert cfg["metadata"]["sparsity"]["method"] == name.split("-")[0]
    assert ("limitation" in cfg["metadata"]) == (name in OURS_ALONE)
    for scalar, value in found.sparsity.named_buffers():
        assert float(value) == pytest.approx(0.3 if name.startswith("jumprelu") else 0), scalar
    # Saved again, it is the same once more.
    save(found, tmp_path / "again", cfg["metadata"])
    same_function(load(tmp_path / "again")[0], answers_of(dictionary, inputs(name)))


def test_saving_leaves_the_dictionary_as_it_is(tmp_path: Path) -> None:
    dictionary = case("gated-sae-skip")
    before = {name: tensor.clone() for name, tensor in dictionary.state_dict().items()}
    save(dictionary, tmp_path, {})
    assert all(torch.equal(tensor, before[name]) for name, tensor in dictionary.state_dict().items())
    assert dictionary.state_dict().keys() == before.keys()


def test_thresholds_that_saelens_changed_are_kept(tmp_path: Path) -> None:
    """SAELens can fold decoder norms into the thresholds of a BatchTopK; what it keeps of our metadata is then old."""
    save(case("batchtopk-sae"), tmp_path, {})
    weights = tmp_path / "sae_weights.safetensors"
    tensors = load_file(weights)
    tensors["threshold"] = torch.linspace(-1, 1, LATENTS)
    save_file(tensors, weights)
    torch.testing.assert_close(
        load(tmp_path)[0].sparsity.saved_tensors()["threshold"], torch.linspace(-1, 1, LATENTS).clamp_min(0)
    )


class Fixed(Sparsity):
    """A σ that SAELens does not know, with a parameter and a scalar of its own."""

    architecture = "fixed"

    def __init__(self, l0: float, latents: int) -> None:
        super().__init__(l0, latents)
        self.floor_F = torch.nn.Parameter(torch.zeros(latents))
        self.register_buffer("share", torch.tensor(0.0))

    def select(self, z_BF: Tensor) -> Pattern:
        return pattern_of(z_BF > self.floor_F + self.share)

    def activate(self, z_N: Tensor, bias_N: Tensor, pattern: Pattern) -> Tensor:
        return z_N * (z_N > pattern.pick(self.floor_F) + self.share)


def test_a_new_sparsity_is_saved_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SPARSITIES, "fixed", Fixed)
    dictionary = Dictionary(6, 5, Fixed(3, LATENTS), centered=False)
    dictionary.start(torch.Generator().manual_seed(0))
    with torch.no_grad():
        dictionary.sparsity.floor_F.copy_(torch.linspace(0, 2, LATENTS))
        dictionary.sparsity.share.fill_(0.25)
    save(dictionary, tmp_path, {})
    found, cfg = load(tmp_path)
    assert cfg["architecture"] == "fixed_transcoder"
    assert "SAELens has no" in cfg["metadata"]["limitation"]
    assert torch.equal(found.sparsity.floor_F, dictionary.sparsity.floor_F)
    same_function(found, answers_of(dictionary, torch.randn(9, 6)))


def edit(folder: Path, **keys: Any) -> None:
    """Change keys of a `cfg.json`; a key that becomes None goes."""
    cfg = json.loads((folder / "cfg.json").read_text()) | keys
    (folder / "cfg.json").write_text(json.dumps({key: value for key, value in cfg.items() if value is not None}))


@pytest.mark.parametrize(
    ("name", "keys", "says"),
    [
        ("standard", {"architecture": "temporal"}, "'temporal' is not understood; these are: standard, jumprelu"),
        ("standard", {"architecture": None}, "architecture: missing"),
        ("standard", {"d_sae": None}, "d_sae: missing"),
        ("standard", {"d_sae": 41}, r"W_dec: \(40, 12\); a standard has \(41, 12\)"),
        ("standard", {"normalize_activations": "batch_norm"}, 'normalize_activations: "batch_norm"'),
        ("transcoder", {"normalize_activations": "layer_norm"}, "layer_norm is understood of SAEs alone"),
        ("standard", {"reshape_activations": "hook_y"}, 'reshape_activations: "hook_y"'),
        ("standard", {"architecture": "jumprelu"}, r"threshold: none; a jumprelu has \(40,\)"),
        ("jumprelu", {"architecture": "standard"}, r"threshold: \(40,\); a standard has none"),
        ("topk", {"k": None}, "k is None; it must be between 1 and d_sae, 40"),
        ("topk", {"k": 41}, "k is 41; it must be"),
        ("transcoder", {"d_out": None}, "d_out is missing"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, name: str, keys: dict[str, Any], says: str) -> None:
    shutil.copytree(FIXTURES / "saelens" / name, tmp_path / name)
    edit(tmp_path / name, **keys)
    with pytest.raises(UserError, match=says) as caught:
        load(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_broken_files_are_one_line(tmp_path: Path) -> None:
    whole = FIXTURES / "saelens" / "topk"
    weights, cfg = tmp_path / "sae_weights.safetensors", tmp_path / "cfg.json"
    mishaps = {
        weights.unlink: "sae_weights.safetensors",
        lambda: weights.write_bytes(weights.read_bytes()[:300]): "sae_weights.safetensors",
        lambda: cfg.write_text(cfg.read_text()[:50]): "is not JSON",
        lambda: cfg.write_text("[]"): "cfg.json",
        cfg.unlink: "cannot be read",
        lambda: shutil.rmtree(tmp_path): "cannot be read",
    }
    for break_it, says in mishaps.items():
        shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
        break_it()
        with pytest.raises(UserError, match=says) as caught:
            load(tmp_path)
        assert str(tmp_path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "sae_weights.safetensors").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        save(case("topk-sae"), tmp_path, {})
