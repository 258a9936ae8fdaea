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
from safetensors.numpy import load_file
from sklearn.datasets import load_digits

from analyze import examples, image_examples
from analyze.activity import measure
from analyze.examples import read_pack
from analyze.image_examples import thumbnail
from analyze.text_examples import AFTER, BEFORE, join_tokens
from harvest import image_source
from harvest.config import HarvestSpec, ImageCorpusSpec, ModelSpec
from harvest.corpora.image_corpus import ImageCorpus
from harvest.corpora.images import decode
from harvest.corpora.prepare_images import prepare_images
from harvest.errors import UserError
from harvest.store import Store
from tests.texts import make_dictionary, make_store, words
from tests.tiny_vision import GRID, PIXELS, TinyTower
from train.files import load


def test_examples_show_their_document_and_nothing_else(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "PACK", 8)
    monkeypatch.setattr(examples, "ENTRIES_AT_ONCE", 1)
    source = words()
    store = make_store(source, tmp_path)
    dictionary = make_dictionary(tmp_path, store, ["in"], ["in"])
    with torch.no_grad():
        dense = dictionary.encode(source.sites["in"]).dense().numpy()
    measure(tmp_path, store.path, tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["packs"] == 4
    packs = [read_pack(tmp_path / f"examples/{number}.json.gz") for number in range(4)]
    tensors = load_file(tmp_path / "latents.safetensors")
    texts_of = {latent: pack["texts"] for pack in packs for latent in pack["latents"]}
    found = {int(latent): each for pack in packs for latent, each in pack["latents"].items()}
    assert set(found) == set(np.flatnonzero((dense > 0).any(0)).tolist())
    firsts = np.searchsorted(source.document, np.arange(len(source.documents)))
    cut = 0
    for latent, of_latent in found.items():
        top, quantiles = of_latent["top"], of_latent["quantiles"]
        assert [example["row"] for example in top] == [row for row in tensors["example_rows"][latent] if row >= 0]
        for group, rows in zip(quantiles, tensors["sample_rows"][latent].tolist(), strict=True):
            assert [example["row"] for example in group] == [row for row in rows if row >= 0]
        for example in itertools.chain(top, *quantiles):
            row = example["row"]
            assert example["activation"] == pytest.approx(float(dense[row, latent]), rel=1e-3)
            document = int(source.document[row])
            assert example["labels"] == {"language": ("nynorsk", "deutsch")[document % 2]}
            tokens, at = source.documents[document], row - int(firsts[document])
            low, high = max(0, at - BEFORE), min(len(tokens), at + AFTER + 1)
            cut += low == 0 or high == len(tokens)
            text = b"".join(tokens[low:high]).decode(errors="replace")
            assert "".join(texts_of[str(latent)][place] for place in example["tokens"]) == text
            shown, which = join_tokens(tokens[low:high])
            assert example["peak"] == which[at - low]
            wanted = np.zeros(len(shown))
            np.maximum.at(wanted, which, dense[row - at + low : row - at + high, latent])
            assert example["activations"] == pytest.approx(wanted, rel=1e-2)
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
    dictionary, _ = load(of_images)
    x_BD = store.read("layers.1.resid_post", 0, store.rows)
    dense_BF = dictionary.encode(x_BD).dense().detach().numpy()
    found = read_pack(of_images / "examples/0.json.gz")["latents"]
    patches = GRID * GRID if store.has("rows/position") else 1
    seen, digits = set(), load_digits().target
    for latent, of_latent in found.items():
        for example in itertools.chain(of_latent["top"], *of_latent["quantiles"]):
            image, patch = divmod(example["row"], patches)
            seen.add(image)
            assert example["image"] == image
            assert example["labels"] == {"class": str(digits[image])}
            assert example.get("patch") == ([patch // GRID, patch % GRID] if patches > 1 else None)
            if patches > 1:
                heat = dense_BF[image * patches : (image + 1) * patches, int(latent)]
                assert example["heat"] == pytest.approx(heat, rel=1e-2)
    facts = json.loads((of_images / "summary.json").read_text())["images"]
    grid = [GRID, GRID] if patches > 1 else None
    assert facts == {"grid": grid, "pixels": [PIXELS, PIXELS], "count": len(seen)}
    assert json.loads((of_images / "images/names.json").read_text()) == {str(n): f"digits:{n}" for n in seen}
    for number in seen:
        thumbnail = np.asarray(Image.open(of_images / f"images/{number}.jpg").resize((32, 32)), np.float32)
        whole = np.asarray(decode(*corpus.encoded(number, number + 1)), np.float32)
        assert thumbnail.shape == (32, 32, 3)
        assert np.corrcoef(thumbnail.ravel(), whole.ravel())[0, 1] > 0.9


def test_the_strongest_examples_have_thumbnails(of_images: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_examples, "THUMBNAILS", 3)
    measure(of_images, of_images / "activations.zarr", of_images)
    rows_FE = load_file(of_images / "latents.safetensors")["example_rows"]
    store = Store(of_images / "activations.zarr")
    first = [int(store.array("rows/document")[row]) for row in rows_FE[:, 0] if row >= 0]
    assert set(map(int, json.loads((of_images / "images/names.json").read_text()))) == set(
        list(dict.fromkeys(first))[:3]
    )


def test_without_the_corpus_or_beside_another(of_images: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (of_images / "corpus.zarr").rename(of_images / "elsewhere")
    measure(tmp_path, of_images / "activations.zarr", tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["images"]["count"] == 0
    measure(tmp_path, of_images / "activations.zarr", tmp_path, of_images / "elsewhere")
    assert json.loads((tmp_path / "summary.json").read_text())["images"]["count"] > 0
    prepare_images(ImageCorpusSpec(digits=True, images=39), tmp_path / "corpus.zarr")
    with pytest.raises(UserError, match="is not the one that the store was harvested from"):
        measure(tmp_path, of_images / "activations.zarr", tmp_path)


def test_a_thumbnail_has_the_proportions_of_what_the_model_sees() -> None:
    image = Image.new("RGB", (300, 100), "white")
    image.paste((0, 0, 0), (0, 0, 100, 100))  # black outside of the middle, where a model that crops does not look
    image.paste((0, 0, 0), (200, 0, 300, 100))
    for squeezed, left in ((False, 240), (True, 0)):
        found = Image.open(io.BytesIO(thumbnail(image, 50, 50, squeezed)))
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
