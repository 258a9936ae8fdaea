"""A vision model's activations in a store, against the same model run by hand on each image alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from PIL import Image

from harvest import image_source
from harvest.config import HarvestSpec, ImageCorpusSpec, ModelSpec, check_spec
from harvest.corpora.image_corpus import ImageCorpus
from harvest.corpora.images import decode
from harvest.corpora.prepare_images import prepare_images
from harvest.errors import UserError
from harvest.image_source import ImageSource
from harvest.run import harvest
from harvest.store import Store
from tests.tiny_vision import GRID, TinyTower

MODEL = ModelSpec(id="tiny", dtype="float32")
IMAGES = 23
LAYERS = ["layers.0.resid_post", "layers.2.resid_post"]
SPECS = {
    "patches": {"sites": LAYERS, "batch_tokens": 60},
    "images": {"sites": [*LAYERS, "pooled"], "batch_tokens": 60, "rows": "images"},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> ImageCorpus:
    """23 images of noise in three classes and sizes."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        place = folder / "found" / "abc"[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        noise = rng.integers(0, 256, (20 + 7 * (number % 2), 24, 3), np.uint8)
        Image.fromarray(noise).save(place / f"{number}.png")
    prepare_images(ImageCorpusSpec(images=1000, folder=str(folder / "found")), folder / "corpus.zarr")
    return ImageCorpus(folder / "corpus.zarr")


@pytest.fixture(autouse=True)
def tower(monkeypatch: pytest.MonkeyPatch) -> Iterator[TinyTower]:
    tower = TinyTower()
    monkeypatch.setattr(image_source, "load_vision", lambda _spec, _device: tower)
    monkeypatch.setattr(image_source, "model_facts", lambda spec: {"id": spec.id})
    return tower


def harvested(corpus: ImageCorpus, folder: Path, what: dict[str, Any], part: tuple[int, int] = (1, 1)) -> ImageSource:
    source = ImageSource(MODEL, corpus, check_spec(what, HarvestSpec))
    harvest(source, folder / "activations.zarr", folder / "activations.manifest.json", source.aliases, part)
    return source


def by_hand(tower: TinyTower, image: Image.Image) -> dict[str, torch.Tensor]:
    """The tower's own arithmetic on one image: layers `(T, width)`, pooled `(width,)`."""
    pixels = tower.preprocess(image)[None]
    x = torch.cat([tower.first[None], tower.embed(pixels).flatten(2).transpose(1, 2)], 1)
    found = {}
    for number, layer in enumerate(tower.layers):
        x = layer(x)
        found[f"layers.{number}.resid_post"] = x[0]
    return found | {"pooled": tower.head(x.mean(1))[0]}


def test_patches(corpus: ImageCorpus, tower: TinyTower, tmp_path: Path) -> None:
    """One image at a time: what is stored does not depend on what was run beside it."""
    harvested(corpus, tmp_path, SPECS["patches"])
    store = Store(tmp_path / "activations.zarr")
    patches = GRID * GRID
    assert store.rows == IMAGES * patches
    assert store.layout.shard_rows % patches  # images straddle shards
    document, position = (np.asarray(store.array(f"rows/{name}")[:]) for name in ("document", "position"))
    assert document.tolist() == np.repeat(np.arange(IMAGES), patches).tolist()
    assert position.tolist() == list(range(patches)) * IMAGES
    for number, encoded in enumerate(corpus.encoded(0, IMAGES)):
        values = by_hand(tower, decode(encoded))
        for site in LAYERS:
            rows = store.read(site, number * patches, (number + 1) * patches)
            torch.testing.assert_close(rows, values[site][2:], rtol=1e-5, atol=1e-5)
    assert store.array("rows/position").attrs["grid"] == [GRID, GRID]
    assert store.array("rows/document").attrs["images"] == corpus.fingerprint


def test_images(corpus: ImageCorpus, tower: TinyTower, tmp_path: Path) -> None:
    harvested(corpus, tmp_path, SPECS["images"])
    store = Store(tmp_path / "activations.zarr")
    assert store.rows == IMAGES
    assert not store.has("rows/position")
    names = store.labels["class"]
    labels = np.asarray(store.array("rows/labels/class")[:])
    for number, encoded in enumerate(corpus.encoded(0, IMAGES)):
        values = by_hand(tower, decode(encoded))
        for site in LAYERS:
            torch.testing.assert_close(store.read(site, number, number + 1)[0], values[site][0], rtol=1e-5, atol=1e-5)
        pooled = store.read("pooled", number, number + 1)[0]
        torch.testing.assert_close(pooled, values["pooled"], rtol=1e-5, atol=1e-5)
        assert names[labels[number]] == corpus.name(number).split("/")[0]
    assert sorted(names) == ["a", "b", "c"]


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize("rows", SPECS)
def test_the_same_bytes_in_parts_and_after_a_loss(corpus: ImageCorpus, tmp_path: Path, rows: str) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    source = harvested(corpus, whole, SPECS[rows])
    for part in ((2, 2), (1, 2)):
        harvested(corpus, parts, SPECS[rows], part)
    written = files(whole)
    assert files(parts) == written
    shards = len(Store(whole / "activations.zarr").finished)
    assert shards >= 16
    site = "layers.0.resid_post"
    (whole / f"activations.zarr/sites/{site}/c/5/0").unlink()
    marker = zarr.open_group(whole / "activations.zarr", mode="a")["statistics/rows"]
    assert isinstance(marker, zarr.Array)
    marker[5:6] = np.array([0])
    harvested(corpus, whole, SPECS[rows])
    assert files(whole) == written
    first = source.read_sites(7, 60 if rows == "patches" else 19)
    source.read_sites(0, 20)
    again = source.read_sites(7, 60 if rows == "patches" else 19)
    assert all(torch.equal(first[site], again[site]) for site in first)


def test_batches(corpus: ImageCorpus, tower: TinyTower) -> None:
    """No pass has more tokens than asked for, every image is run once, and one pass serves all sites."""
    source = ImageSource(MODEL, corpus, check_spec(SPECS["patches"], HarvestSpec))
    sizes: list[int] = []
    tower.register_forward_pre_hook(lambda _m, _a, inputs: sizes.append(len(inputs["pixel_values"])), with_kwargs=True)
    source.read_sites(0, source.rows)
    assert sizes == [3] * 7 + [2]  # 60 tokens are three images of 18
    sizes.clear()
    source.read_sites(20, 30)
    assert sizes == [1]


def test_rows_default_to_what_the_sites_have(corpus: ImageCorpus) -> None:
    assert ImageSource(MODEL, corpus, HarvestSpec(sites=["pooled"])).rows == IMAGES
    assert ImageSource(MODEL, corpus, HarvestSpec(sites=["layers.*.resid_post"])).rows == IMAGES * GRID * GRID
    assert ImageSource(MODEL, corpus, HarvestSpec(sites=["layers.50%.resid_post"])).aliases == {
        "layers.50%.resid_post": "layers.2.resid_post"
    }


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ({"sites": ["layers.0.resid_post", "pooled"]}, "^pooled: has one vector an image .* make two harvests"),
        ({"sites": ["pooled"], "rows": "patches"}, "^pooled: has one vector an image"),
        ({"sites": ["pooled"], "rows": "tokens"}, "^rows: tokens: is for text"),
        ({"sites": ["layers.3.resid_post"]}, "^layers.3.resid_post: this model has layers 0 to 2"),
        ({"sites": ["embed:out"]}, r"^embed:out: its shape \(3, 12, 4, 4\) for 3 images is not one vector"),
    ],
)
def test_mistakes(corpus: ImageCorpus, what: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        ImageSource(MODEL, corpus, check_spec(what, HarvestSpec))


def test_a_tower_without_a_class_token(corpus: ImageCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_source, "load_vision", lambda _spec, _device: TinyTower(has_cls=False))
    assert ImageSource(MODEL, corpus, HarvestSpec(sites=LAYERS)).rows == IMAGES * GRID * GRID
    with pytest.raises(UserError, match=r"^layers.0.resid_post: this model has no class token to stand for an image"):
        ImageSource(MODEL, corpus, HarvestSpec(sites=LAYERS, rows="images"))


def test_whether_images_are_squeezed(corpus: ImageCorpus, tower: TinyTower, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by a look at what preprocessing does to a wide image: `TinyTower` cuts."""

    def squeeze(image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.array(image.resize((16, 16)))).permute(2, 0, 1).float() / 127.5 - 1

    for squeezed in (False, True):
        columns = ImageSource(MODEL, corpus, HarvestSpec(sites=["pooled"])).columns
        assert columns["rows/document"].attributes["squeezed"] is squeezed
        monkeypatch.setattr(tower, "preprocess", squeeze)


def test_facts_tell_apart_what_gives_other_rows(corpus: ImageCorpus) -> None:
    specs = [{"sites": LAYERS}, {"sites": LAYERS, "rows": "images"}, {"sites": LAYERS, "batch_tokens": 60}]
    facts = [ImageSource(MODEL, corpus, check_spec(spec, HarvestSpec)).facts for spec in specs]
    assert all(one != other for i, one in enumerate(facts) for other in facts[:i])
    assert facts[0]["corpus"] == corpus.fingerprint
