import base64
import io
import itertools
import json
import pathlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from analyze.activity import measure
from analyze.examples import AFTER, BEFORE, choose, join_tokens, thumbnail
from harvest import image_source
from harvest.config import HarvestSpec, ImageCorpusSpec, ModelSpec
from harvest.corpora.image_corpus import ImageCorpus
from harvest.corpora.images import decode
from harvest.corpora.prepare_images import prepare_images
from harvest.errors import UserError
from harvest.store import Store
from tests.texts import make_dictionary, make_store, words
from tests.tiny_vision import GRID, PIXELS, TinyTower


def test_examples_show_their_document_and_nothing_else(tmp_path: pathlib.Path) -> None:
    source = words()
    store = make_store(source, tmp_path)
    dictionary = make_dictionary(tmp_path, store, ["in"], ["in"])
    with torch.no_grad():
        dense = dictionary.encode(source.sites["in"]).dense().numpy()
    measure(tmp_path, store.path, tmp_path)
    found = json.loads((tmp_path / "examples.json").read_text())["latents"]
    assert {entry["latent"] for entry in found} == set(np.flatnonzero((dense > 0).any(0)).tolist())
    firsts = np.searchsorted(source.document, np.arange(len(source.documents)))
    cut = 0
    for entry in found:
        assert entry["examples"]
        for example in entry["examples"]:
            row, latent = example["row"], entry["latent"]
            assert example["activation"] == pytest.approx(float(dense[row, latent]), rel=1e-5)
            document = int(source.document[row])
            assert example["labels"] == {"language": ("nynorsk", "deutsch")[document % 2]}
            tokens, at = source.documents[document], row - int(firsts[document])
            low, high = max(0, at - BEFORE), min(len(tokens), at + AFTER + 1)
            cut += low == 0 or high == len(tokens)
            text = b"".join(tokens[low:high]).decode(errors="replace")
            assert "".join(text for text, _ in example["tokens"]) == text
            shown, which = join_tokens(tokens[low:high])
            assert example["peak"] == which[at - low]
            wanted = np.zeros(len(shown))
            np.maximum.at(wanted, which, dense[row - at + low : row - at + high, latent])
            assert [activation for _, activation in example["tokens"]] == pytest.approx(wanted, rel=1e-3)
    assert cut > 20  # borders were seen


@pytest.fixture(params=["patches", "images"])
def of_images(request: pytest.FixtureRequest, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A folder with 40 digits, their store by patches or by images, and what was measured of a dictionary for it."""
    monkeypatch.setattr(image_source, "load_vision", lambda _spec, _device: TinyTower())
    monkeypatch.setattr(image_source, "model_facts", lambda spec: {"id": spec.id})
    prepare_images(ImageCorpusSpec(digits=True, images=40), tmp_path / "corpus.zarr")
    spec = HarvestSpec(sites=["layers.1.resid_post"], rows=request.param)
    source = image_source.ImageSource(
        ModelSpec(id="tiny", dtype="float32"), ImageCorpus(tmp_path / "corpus.zarr"), spec
    )
    store = make_store(source, tmp_path)
    make_dictionary(tmp_path, store, ["layers.1.resid_post"], ["layers.1.resid_post"])
    measure(tmp_path, store.path, tmp_path)
    return tmp_path


def test_examples_show_their_image(of_images: pathlib.Path) -> None:
    corpus, store = ImageCorpus(of_images / "corpus.zarr"), Store(of_images / "activations.zarr")
    found = json.loads((of_images / "examples.json").read_text())
    patches = GRID * GRID if store.has("rows/position") else 1
    seen = set()
    for entry in found["latents"]:
        for example in entry["examples"]:
            image, patch = divmod(example["row"], patches)
            seen.add(str(image))
            assert example["image"] == image
            assert example["labels"] == {"class": str(load_digits().target[image])}
            assert example.get("patch") == ([patch // GRID, patch % GRID] if patches > 1 else None)
    assert found["images"].keys() == seen
    assert (found["grid"], found["pixels"]) == ([GRID, GRID] if patches > 1 else None, [PIXELS, PIXELS])
    for number, shown in found["images"].items():
        assert shown["name"] == f"digits:{number}"
        kind, _, data = shown["thumbnail"].partition(",")
        assert kind == "data:image/jpeg;base64"
        thumbnail = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).resize((32, 32)), np.float32)
        whole = np.asarray(decode(*corpus.encoded(int(number), int(number) + 1)), np.float32)
        assert thumbnail.shape == (32, 32, 3)
        assert np.corrcoef(thumbnail.ravel(), whole.ravel())[0, 1] > 0.9


def test_without_the_corpus_or_beside_another(of_images: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (of_images / "corpus.zarr").rename(of_images / "elsewhere")
    measure(tmp_path, of_images / "activations.zarr", tmp_path)
    assert json.loads((tmp_path / "examples.json").read_text())["images"] == {}
    prepare_images(ImageCorpusSpec(digits=True, images=39), tmp_path / "corpus.zarr")
    with pytest.raises(UserError, match="is not the one that the store beside it was harvested from"):
        measure(tmp_path, of_images / "activations.zarr", tmp_path)


def test_a_thumbnail_has_the_proportions_of_what_the_model_sees() -> None:
    image = Image.new("RGB", (300, 100), "white")
    image.paste((0, 0, 0), (0, 0, 100, 100))  # black outside of the middle, where a model that crops does not look
    image.paste((0, 0, 0), (200, 0, 300, 100))
    for squeezed, left in ((False, 240), (True, 0)):
        found = Image.open(io.BytesIO(base64.b64decode(thumbnail(image, 50, 50, squeezed).partition(",")[2])))
        assert found.size == (64, 64)
        assert abs(np.asarray(found)[:, 4:16].mean() - left) < 16


@given(st.text(max_size=20), st.data())
def test_joined_tokens_give_the_text_back(text: str, data: st.DataObject) -> None:
    written = text.encode(errors="ignore")
    cuts = sorted(data.draw(st.sets(st.integers(0, len(written)))) | {0, len(written)})
    pieces = [written[a:b] for a, b in itertools.pairwise(cuts)]
    texts, which = join_tokens(pieces)
    assert "".join(texts) == written.decode()
    assert len(which) == len(pieces)
    joined = [b"".join(p for p, at in zip(pieces, which, strict=True) if at == i) for i in range(len(texts))]
    assert [piece.decode() for piece in joined] == texts


@given(st.lists(st.binary(max_size=3), max_size=8))
def test_bytes_that_are_no_text_are_replaced(pieces: list[bytes]) -> None:
    texts, which = join_tokens(pieces)
    assert "".join(texts) == b"".join(pieces).decode(errors="replace")
    assert which == sorted(which)
    assert set(which) == set(range(len(texts)))


def test_a_choice_of_latents_is_even_and_alive() -> None:
    firing_F = np.array([0, 5, 9, 0, 9, 1])
    assert choose(firing_F, 10).tolist() == [2, 4, 1, 5]
    assert choose(firing_F, 2).tolist() == [2, 5]
    assert choose(np.zeros(4, np.int64), 2).tolist() == []
