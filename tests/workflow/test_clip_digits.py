"""The pipeline of images, configs/clip-digits.yaml in small: from digits to a report that shows them."""

import base64
import json
import re
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
    done = run(
        folder, "--set-threads", *(f"{rule}=1" for rule in ("prepare", "harvest", "anchors", "train", "measure"))
    )
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
def test_the_report_shows_the_images(finished: Path, name: str) -> None:
    page = (finished / f"report/dictionaries/{name}.html").read_text()
    measured = finished / f"analyze/{name}"
    shown = [
        example
        for file in measured.glob("examples/*.json.gz")
        for each in read_pack(file)["latents"].values()
        for example in each["top"]
    ]
    assert shown
    drawn = re.findall(r'<span class="picture image-(\d+)"', page)
    assert sorted(map(int, drawn)) == sorted(example["image"] for example in shown)
    kept = dict(
        re.findall(r'^\.image-(\d+) \{ background-image: url\("(data:image/jpeg;base64,[\w+/=]+)"\); \}$', page, re.M)
    )
    files = {str(example["image"]): measured / f"images/{example['image']}.jpg" for example in shown}
    assert {number: base64.b64decode(data.partition(",")[2]) for number, data in kept.items()} == {
        number: file.read_bytes() for number, file in files.items()
    }
    frames = re.findall(r'<i style="top: ([\d.]+)%; left: ([\d.]+)%; height: 25.0%; width: 25.0%">', page)
    wanted = sorted((25 * down, 25 * across) for example in shown for down, across in [example.get("patch", [0, 0])])
    assert sorted((float(top), float(left)) for top, left in frames) == (wanted if name.startswith("patch") else [])


def test_anchors_are_the_classes(finished: Path) -> None:
    training = json.loads((finished / "train/embedding-anchored/training.json").read_text())
    assert training["spec"]["anchors"]["source"] == "labels.class"
