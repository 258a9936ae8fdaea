"""Geometry against loops in float64 and logits written by hand."""

import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch.nn.functional import normalize

from analyze import directions
from analyze.geometry import measure_geometry
from harvest.config import ModelSpec
from harvest.errors import UserError
from harvest.models.load import import_transformers, load_tokenizer, model_facts
from harvest.source import Column
from harvest.store import Store
from tests.synthetic import Synthetic, synthetic_store
from tests.tiny import tiny_gpt2, tiny_llama
from train.dictionary import Dictionary
from train.files import save
from train.sparsity import make_sparsity

POST, IN, OUT = "layers.1.resid_post", "layers.1.mlp_in", "layers.1.mlp_out"
COLOURS = ["red", "green", "blue", "never", "cyan", "pink", "grey"]


@dataclass
class Labelled(Synthetic):
    """A row's colour is its number modulo 8, where there is such a colour but the fourth; every row is of one shape."""

    columns: Mapping[str, Column] = field(
        default_factory=lambda: {
            "rows/labels/colour": Column("int32", None, {"names": COLOURS}),
            "rows/labels/shape": Column("int32", None, {"names": ["round"]}),
        }
    )

    def read_columns(self, start: int, stop: int) -> dict[str, np.ndarray]:
        colour = np.arange(start, stop, dtype=np.int32) % 8
        colour[(colour == 7) | (colour == 3)] = -1
        return {"rows/labels/colour": colour, "rows/labels/shape": np.zeros(stop - start, np.int32)}


def make_store(folder: pathlib.Path, spec: ModelSpec | None, width: int = 32) -> Store:
    facts = {} if spec is None else {"model": model_facts(spec)}
    source = Labelled(400, {POST: width, IN: width, OUT: width}, facts=facts)
    return synthetic_store(folder, source)


def make_dictionary(folder: pathlib.Path, store: Store, reads: list[str], writes: list[str]) -> Dictionary:
    """43 latents with rows of any length."""
    random = torch.Generator().manual_seed(5)
    read, written = (sum(store.widths[site] for site in sites) for sites in (reads, writes))
    dictionary = Dictionary(read, written, make_sparsity("topk", 4, 43), centered=reads == writes)
    for weight in dictionary.parameters():
        weight.data.copy_(torch.randn(weight.shape, generator=random) + 0.2)
    if len(writes) > 1:
        dictionary.W_dec.data[:, : store.widths[writes[0]]] *= 30
    save(dictionary, folder, {"reads": reads, "writes": writes, "store": store.fingerprint, "spec": {"holdout": 0.1}})
    return dictionary


def measured(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    return json.loads((folder / "geometry.json").read_text()), load_file(folder / "geometry.safetensors")


@pytest.mark.parametrize(
    ("reads", "writes"),
    [([POST], [POST]), ([IN], [OUT]), ([IN, OUT], [IN, OUT])],
    ids=["sae", "transcoder", "crosscoder"],
)
def test_neighbours_and_labels_equal_loops(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, reads: list[str], writes: list[str]
) -> None:
    monkeypatch.setattr(directions, "BLOCK_PLACES", 43 * 10)
    store = make_store(tmp_path, None)
    dictionary = make_dictionary(tmp_path / "dictionary", store, reads, writes)
    measure_geometry(tmp_path / "dictionary", store.path, None, tmp_path / "out")
    about, found = measured(tmp_path / "out")
    W_dec, W_enc = (W.detach().double().numpy() for W in (dictionary.W_dec, dictionary.W_enc))
    units = np.ones(W_dec.shape[1])
    if len(writes) > 1:
        units = np.repeat(
            [1 / np.sqrt((W_dec[:, half] ** 2).sum(1).mean()) for half in (slice(0, 32), slice(32, 64))], 32
        )

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    for latent in range(43):
        others = sorted(
            ((cosine(W_dec[latent] * units, W_dec[i] * units), i) for i in range(43) if i != latent), reverse=True
        )[:8]
        assert found["neighbours"][latent].tolist() == [i for _, i in others]
        np.testing.assert_allclose(found["neighbour_cosines"][latent], [value for value, _ in others], atol=1e-6)
        if reads == writes:
            wanted = cosine(W_enc[latent] / units, W_dec[latent] * units)
            assert found["encoder_decoder_cosine"][latent] == pytest.approx(wanted, abs=1e-6)
    if reads != writes:
        assert np.isnan(found["encoder_decoder_cosine"]).all()

    x = torch.cat([store.read(site, 0, 400) for site in writes], 1).double().numpy()
    colour = np.arange(400) % 8
    means = {i: (x[colour == i].mean(0) - x.mean(0)) * units for i in (0, 1, 2, 4, 5, 6)}
    for latent in range(43):
        nearest = sorted(((cosine(W_dec[latent] * units, mean), i) for i, mean in means.items()), reverse=True)[:5]
        assert found["colour/nearest_labels"][latent].tolist() == [i for _, i in nearest]
        np.testing.assert_allclose(found["colour/nearest_label_cosines"][latent], [v for v, _ in nearest], atol=1e-5)
    assert (found["shape/nearest_labels"] == -1).all()  # all rows have it
    assert np.isnan(found["shape/nearest_label_cosines"]).all()
    assert about["sets"] == {"colour": COLOURS, "shape": ["round"]}
    assert about["site"] is None
    assert about["no_lens"] == "no text model was given to read tokens with"
    assert "top_tokens" not in found


def make_model(folder: pathlib.Path, kind: str) -> tuple[ModelSpec, Any]:
    """Noise on its norm, as a new norm's weights are all one. The Llama has five rows more than tokens, large ones."""
    directory = {"gpt2": tiny_gpt2, "llama": tiny_llama}[kind](folder / kind)
    model = import_transformers().AutoModelForCausalLM.from_pretrained(directory)
    norm = model.transformer.ln_f if kind == "gpt2" else model.model.norm
    norm.weight.data += torch.randn(norm.weight.shape, generator=torch.Generator().manual_seed(1))
    if kind == "llama":
        model.resize_token_embeddings(model.config.vocab_size + 5)
        model.lm_head.weight.data[-5:] *= 1000
    model.save_pretrained(directory)
    return ModelSpec(id=str(directory), dtype="float32"), model


@pytest.mark.parametrize(("kind", "writes"), [("gpt2", [POST]), ("llama", [POST]), ("gpt2", [IN, OUT])], ids=str)
def test_the_lens_equals_logits_by_hand(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, kind: str, writes: list[str]
) -> None:
    monkeypatch.setattr(directions, "BLOCK_PLACES", 400 * 10)
    spec, model = make_model(tmp_path, kind)
    store = make_store(tmp_path, spec, model.config.hidden_size)
    dictionary = make_dictionary(tmp_path / "dictionary", store, writes, writes)
    measure_geometry(tmp_path / "dictionary", store.path, spec, tmp_path / "out")
    about, found = measured(tmp_path / "out")
    d = dictionary.W_dec.detach().double()[:, -model.config.hidden_size :]
    if kind == "gpt2":
        W_U, folded = model.transformer.wte.weight, (d - d.mean(1, keepdim=True)) * model.transformer.ln_f.weight
    else:
        W_U, folded = model.lm_head.weight[:-5], d * model.model.norm.weight
    logits = (folded @ W_U.double().T).detach().numpy()
    order = np.argsort(logits, 1)
    assert found["top_tokens"].dtype == np.int32
    np.testing.assert_array_equal(found["top_tokens"], order[:, ::-1][:, :10])
    np.testing.assert_array_equal(found["bottom_tokens"], order[:, :10])
    np.testing.assert_allclose(found["top_logits"], np.sort(logits, 1)[:, ::-1][:, :10], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["bottom_logits"], np.sort(logits, 1)[:, :10], rtol=1e-4, atol=1e-4)
    assert (about["site"], about["no_lens"]) == (writes[-1], None)
    shown = set(order[:, :10].flatten()) | set(order[:, -10:].flatten())
    assert {int(number) for number in about["tokens"]} == shown
    tokenizer = load_tokenizer(spec)
    assert {int(number): text for number, text in about["tokens"].items()} == {
        number: tokenizer.decode([number], clean_up_tokenization_spaces=False) for number in shown
    }


def test_what_goes_into_an_mlp_has_no_lens(tmp_path: pathlib.Path) -> None:
    spec, _ = make_model(tmp_path, "gpt2")
    store = make_store(tmp_path, spec)
    make_dictionary(tmp_path / "dictionary", store, [IN], [IN])
    measure_geometry(tmp_path / "dictionary", store.path, spec, tmp_path / "out")
    about, found = measured(tmp_path / "out")
    assert about["no_lens"] == f"{IN} is no place where the residual stream is written"
    assert "top_tokens" not in found


def test_fewer_latents_than_neighbours() -> None:
    x_MD = normalize(torch.randn(3, 5, generator=torch.Generator().manual_seed(0)))
    cosines, which = directions.largest(x_MD, x_MD, 8, but_itself=True)
    assert (which[:, :2] >= 0).all()
    assert (which[:, 2:] == -1).all()
    assert cosines[:, 2:].isnan().all()


def test_mistakes(tmp_path: pathlib.Path) -> None:
    spec, other = (ModelSpec(id=str(make(tmp_path / make.__name__))) for make in (tiny_gpt2, tiny_llama))
    store = make_store(tmp_path / "store", spec)
    make_dictionary(tmp_path / "dictionary", store, [POST], [POST])
    with pytest.raises(UserError, match=r"^--model: .*tiny_llama: the rows of .* are from another model$"):
        measure_geometry(tmp_path / "dictionary", store.path, other, tmp_path / "out")
    bench = make_store(tmp_path / "bench", None)
    make_dictionary(tmp_path / "of-bench", bench, [POST], [POST])
    with pytest.raises(UserError, match=r"are from no model$"):
        measure_geometry(tmp_path / "of-bench", bench.path, spec, tmp_path / "out")
    with pytest.raises(UserError, match=r"was trained on another one$"):
        measure_geometry(tmp_path / "dictionary", bench.path, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    arguments = ["geometry", str(tmp_path / "none"), "--store", str(store.path), "--output", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-m", "analyze", *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: dictionary ")
    assert done.stderr.count("\n") == 1
