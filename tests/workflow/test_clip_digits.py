"""The pipeline of images, configs/clip-digits.yaml in small: from digits to a report that shows them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from analyze.examples import read_pack
from harvest.store import Store
from tests.workflow.conftest import REPOSITORY, run

IMAGES, PATCHES = 120, 16
NAMES = ["embedding", "embedding-anchored", "patch", "patch-anchored"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which everything was made from 120 digits; each harvest's dictionaries were trained together."""
    folder = tmp_path_factory.mktemp("images")
    config: dict[str, Any] = yaml.safe_load((REPOSITORY / "configs/clip-digits.yaml").read_text())
    config["corpora"]["digits"]["images"] = IMAGES
    for spec in config["dictionaries"].values():
        spec |= {"latents": 32, "tokens": 2000, "batch": 64}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    done = run(folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "results/tiny"


def test_stores_of_images_and_of_patches(finished: Path) -> None:
    images = Store(finished / "harvest/images/activations.zarr")
    assert (images.rows, images.widths) == (IMAGES, {"layers.2.resid_post": 128, "pooled": 64})
    patches = Store(finished / "harvest/patches/activations.zarr")
    assert (patches.rows, patches.widths) == (IMAGES * PATCHES, {"layers.2.resid_post": 128})
    labels = [np.asarray(store.array("rows/labels/class")[:]) for store in (images, patches)]
    assert np.array_equal(np.repeat(labels[0], PATCHES), labels[1])
    assert json.loads((finished / "harvest/images/corpus.json").read_text())["complete"]


@pytest.mark.parametrize("name", NAMES)
def test_what_latents_stand_for(finished: Path, name: str) -> None:
    found = json.loads((finished / f"analyze/{name}/monosemanticity.json").read_text())
    assert [label["anchored"] for label in found["sets"]["class"]["labels"]] == [name.endswith("anchored")] * 10
    assert (found["score"] or {}).get("embedding") == ("layers.2.resid_post" if name.startswith("embedding") else None)
    assert (finished / "report/monosemanticity.html").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_the_report_shows_the_images(finished: Path, name: str) -> None:
    measured, shown = finished / f"analyze/{name}", finished / f"report/features/{name}"
    examples = [
        example
        for file in measured.glob("examples/*.json.gz")
        for each in read_pack(file)["latents"].values()
        for example in each["top"]
    ]
    assert examples
    for example in examples:
        image = f"images/{example['image']}.jpg"
        assert (shown / image).read_bytes() == (measured / image).read_bytes()
        assert ("heat" in example) == name.startswith("patch")
    assert (finished / f"report/features/{name}.html").is_file()
    assert f"features/{name}.html" in (finished / "report/index.html").read_text()


def test_anchors_are_the_classes(finished: Path) -> None:
    training = json.loads((finished / "train/embedding-anchored/training.json").read_text())
    assert training["spec"]["anchors"]["source"] == "labels.class"
