"""A saved dictionary is the same function when it is loaded again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from harvest.errors import UserError
from train.dictionary import Dictionary
from train.files import load, save
from train.sparsity import SPARSITIES, make_sparsity

KINDS = {"sae": (9, 9, True, False), "transcoder": (9, 6, False, False), "skip transcoder": (9, 6, False, True)}
LATENTS = 30
METADATA = {"kind": "sae", "reads": ["layers.3.resid_post"], "store": "0123abc", "note": "ünïcode"}


def random_dictionary(method: str, kind: str) -> Dictionary:
    read, written, centered, skip = KINDS[kind]
    rng = torch.Generator().manual_seed(0)
    dictionary = Dictionary(read, written, make_sparsity(method, 4, LATENTS), centered, skip).eval()
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=rng))
        for buffer in dictionary.buffers():
            buffer.fill_(0.3)
    return dictionary


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", SPARSITIES)
def test_round_trip(tmp_path: Path, method: str, kind: str) -> None:
    dictionary = random_dictionary(method, kind)
    save(dictionary, tmp_path / "new" / "folder", METADATA)
    found, cfg = load(tmp_path / "new" / "folder")
    x_BP = torch.randn(200, 9, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, codes = dictionary.encode(x_BP), found.encode(x_BP)
        assert 1 < float(expected.l0()) < LATENTS
        torch.testing.assert_close(codes.dense(), expected.dense(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found(x_BP), dictionary(x_BP), rtol=1e-5, atol=1e-5)
    assert cfg["metadata"] == METADATA
    assert not found.training
    for name in ("W_enc", "b_enc", "W_dec", "b_dec", "W_skip"):
        one, other = getattr(found, name), getattr(dictionary, name)
        assert (one is None and other is None) or torch.equal(one, other)

    save(found, tmp_path / "again", METADATA)
    assert (tmp_path / "again" / "cfg.json").read_text() == (tmp_path / "new" / "folder" / "cfg.json").read_text()


@pytest.mark.parametrize("method", SPARSITIES)
def test_files_are_laid_out_as_saelens_does(tmp_path: Path, method: str) -> None:
    """Names and shapes that SAELens 6.54 writes for the same architectures."""
    for kind, architecture in [
        ("sae", {"relu": "standard", "batchtopk": "jumprelu"}.get(method, method)),
        (
            "transcoder",
            {"relu": "transcoder", "jumprelu": "jumprelu_transcoder", "batchtopk": "jumprelu_transcoder"}.get(method),
        ),
        ("skip transcoder", {"relu": "skip_transcoder"}.get(method)),
    ]:
        if architecture is None:
            continue  # SAELens has none such
        save(random_dictionary(method, kind), tmp_path, METADATA)
        cfg = json.loads((tmp_path / "cfg.json").read_text())
        read, written, centered, skip = KINDS[kind]
        common = {"d_in": read, "d_sae": LATENTS, "dtype": "float32", "device": "cpu", "metadata": METADATA}
        common |= {"normalize_activations": "none", "reshape_activations": "none", "apply_b_dec_to_input": centered}
        rest: dict[str, Any] = {} if kind == "sae" else {"d_out": written}
        if method == "topk":
            rest |= {"k": 4, "rescale_acts_by_decoder_norm": False}
        assert cfg == {"architecture": architecture, **common, **rest}
        shapes = {"W_enc": (read, LATENTS), "W_dec": (LATENTS, written), "b_dec": (written,)}
        own = {"gated": ["b_gate", "r_mag", "b_mag"], "jumprelu": ["b_enc", "threshold"]}.get(method, ["b_enc"])
        own += ["threshold"] if method == "batchtopk" else []
        shapes |= dict.fromkeys(own, (LATENTS,)) | ({"W_skip": (written, read)} if skip else {})
        tensors = load_file(tmp_path / "sae_weights.safetensors")
        assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == shapes
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_broken_directories_are_one_line(tmp_path: Path) -> None:
    save(random_dictionary("topk", "sae"), tmp_path, {})
    weights, cfg = tmp_path / "sae_weights.safetensors", tmp_path / "cfg.json"
    whole, settings = weights.read_bytes(), cfg.read_text()
    mishaps: list[tuple[Callable[[], object], str]] = [
        (lambda: weights.unlink(), "sae_weights.safetensors"),
        (lambda: weights.write_bytes(whole[: len(whole) // 2]), "sae_weights.safetensors"),
        (lambda: cfg.write_text(settings.replace('"topk"', '"temporal"')), "'temporal' is not understood"),
        (lambda: cfg.write_text(settings[:50]), "is not JSON"),
        (lambda: cfg.unlink(), "cannot be read"),
    ]
    for break_it, says in mishaps:
        weights.write_bytes(whole)
        cfg.write_text(settings)
        break_it()
        with pytest.raises(UserError, match=says) as caught:
            load(tmp_path)
        assert str(tmp_path) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="nowhere"):
        load(tmp_path / "nowhere")
