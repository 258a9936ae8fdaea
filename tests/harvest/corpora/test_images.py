"""Images from folders, datasets and scikit-learn, against what was written into them."""

import io
import json
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from harvest.config import ImageCorpusSpec, check_spec
from harvest.corpora.documents import LeftOut
from harvest.corpora.image_corpus import ImageCorpus
from harvest.corpora.images import decode, folders_of, images
from harvest.corpora.prepare_images import prepare_images
from harvest.errors import UserError

RED, HALF = (200, 10, 30), (200, 10, 30, 128)


def encoded(image: Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def png(shade: int = 0) -> bytes:
    return encoded(Image.new("RGB", (8, 6), (shade, 0, 0)))


def huge() -> bytes:
    """A PNG of 70 bytes that says it is 60,000 pixels wide and high."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """60 cats, 6 dogs of which 2 lie deeper, a bird, 2 images of no class, and four files to leave out."""
    found = tmp_path / "found"
    for place, count in (("cat", 60), ("dog", 4), ("dog/small/brown", 2), ("bird", 1), ("", 2)):
        (found / place).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (found / place / f"{number}.png").write_bytes(png(number))
    (found / "cat/notes.txt").write_text("A cat.")
    (found / "cat/broken.png").write_bytes(png()[:45])
    (found / "cat/drawing.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    (found / "huge.png").write_bytes(huge())
    return found


def prepared(output: Path, **spec: Any) -> ImageCorpus:
    facts = prepare_images(check_spec(spec, ImageCorpusSpec), output)
    corpus = ImageCorpus(output)
    assert corpus.facts == json.loads(json.dumps(facts))
    return corpus


def classes(corpus: ImageCorpus) -> list[str | None]:
    names = corpus.labels["class"]
    return [names[label] if label >= 0 else None for label in corpus.read_labels(0, corpus.images)["class"]]


def test_a_folder_with_its_classes(folder: Path, tmp_path: Path) -> None:
    corpus = prepared(tmp_path / "corpus.zarr", folder=str(folder), images=1000)
    names = [corpus.name(number) for number in range(corpus.images)]
    assert corpus.images == len(set(names)) == 69
    assert (corpus.facts["complete"], corpus.facts["bytes"]) == (False, corpus.offsets[-1])
    assert corpus.encoded(0, 69) == [(folder / name).read_bytes() for name in names]
    assert classes(corpus) == [name.split("/")[0] if "/" in name else None for name in names]
    assert "dog/small/brown/1.png" in names
    assert corpus.facts["left_out"] == {
        "files that are no images": 2,
        "images of too many pixels": 1,
        "images that do not decode": 1,
    }
    assert sorted(corpus.facts["left_out_names"]) == [
        "cat/broken.png: images that do not decode",
        "cat/drawing.eps: files that are no images",
        "cat/notes.txt: files that are no images",
        "huge.png: images of too many pixels",
    ]


def test_any_stretch_mixes_classes(folder: Path, tmp_path: Path) -> None:
    few = prepared(tmp_path / "few.zarr", folder=str(folder), images=10)
    assert (few.images, few.facts["complete"]) == (10, True)
    assert set(classes(few)) == {"cat", "dog", "bird", None}
    found = classes(prepared(tmp_path / "all.zarr", folder=str(folder), images=1000))
    assert found[:10] == classes(few)
    assert {"cat", "dog"} <= set(found[-30:])


def test_the_same_corpus_wherever_it_lies(folder: Path, tmp_path: Path) -> None:
    corpus = prepared(tmp_path / "one.zarr", folder=str(folder), images=50)
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert prepared(tmp_path / "two.zarr", folder=str(moved), images=50).fingerprint == corpus.fingerprint
    (moved / corpus.name(49)).write_bytes(png(255))
    assert prepared(tmp_path / "two.zarr", folder=str(moved), images=50).fingerprint != corpus.fingerprint


def test_folders_tell_that_images_came(folder: Path) -> None:
    found = folders_of(ImageCorpusSpec(folder=str(folder), images=1))
    assert found == [str(folder / name) for name in ("", "bird", "cat", "dog", "dog/small", "dog/small/brown")]


def sample(mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.full((2, 3), 100 * 256 + 7, np.uint16))
    colour: Any = {"L": 100, "LA": (100, 255), "RGB": RED, "RGBA": HALF, "P": RED, "CMYK": (0, 0, 0, 0), "1": 1}[mode]
    if mode == "P":
        return Image.new("RGB", (3, 2), colour).quantize(4)
    return Image.new(mode, (3, 2), colour)


@pytest.mark.parametrize(
    ("mode", "kind", "seen"),
    [
        ("RGB", "PNG", RED),
        ("RGBA", "PNG", (227, 132, 142)),  # half of it on white
        ("RGBA", "WEBP", (227, 132, 142)),
        ("L", "PNG", (100, 100, 100)),
        ("LA", "PNG", (100, 100, 100)),
        ("I;16", "PNG", (100, 100, 100)),
        ("1", "PNG", (255, 255, 255)),
        ("P", "PNG", RED),
        ("P", "GIF", RED),
        ("CMYK", "JPEG", (255, 255, 255)),
        ("RGB", "BMP", RED),
        ("RGB", "TIFF", RED),
        ("RGB", "JPEG2000", RED),
    ],
)
def test_every_mode_becomes_rgb(mode: str, kind: str, seen: tuple[int, int, int]) -> None:
    how = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    image = decode(encoded(sample(mode), kind, **how))
    assert (image.mode, image.size) == ("RGB", (3, 2))
    assert np.abs(np.asarray(image).astype(int) - np.array(seen)).max() <= 2


def test_images_are_upright() -> None:
    image = Image.new("RGB", (8, 4), "white")
    image.paste((0, 0, 0), (0, 0, 4, 4))  # black on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the left is up
    upright = decode(encoded(image, "JPEG", exif=exif, quality=95))
    assert upright.size == (4, 8)
    assert np.asarray(upright)[:4].mean() < 10
    assert np.asarray(upright)[4:].mean() > 245


def test_digits(tmp_path: Path) -> None:
    corpus = prepared(tmp_path / "corpus.zarr", digits=True, images=5000)
    digits = load_digits()
    assert (corpus.images, corpus.facts["complete"]) == (1797, False)
    assert corpus.labels == {"class": [str(digit) for digit in range(10)]}
    assert corpus.read_labels(0, 1797)["class"].tolist() == digits.target.tolist()
    image = np.asarray(decode(corpus.encoded(100, 101)[0]))
    assert image.shape == (32, 32, 3)
    assert np.array_equal(image[::4, ::4, 1], (digits.images[100] * 255 / 16).astype(np.uint8))


@pytest.fixture
def dataset(monkeypatch: pytest.MonkeyPatch) -> str:
    """A dataset as the Hub would have it: a column of images, one missing, one broken; a class and a text column."""
    columns = {
        "picture": [{"bytes": png(1)}, {"bytes": png(2)}, None, {"bytes": png(4)[:45]}, {"bytes": png(5)}],
        "kind": [1, 0, 0, 0, -1],
        "place": ["Oslo", None, "Bergen", "Oslo", "Bergen"],
    }
    kinds = {
        "picture": datasets.Image(),
        "kind": datasets.ClassLabel(names=["x", "y"]),
        "place": datasets.Value("string"),
    }
    made = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds)).to_iterable_dataset()
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: made)
    return "some/pictures"


def test_a_dataset_with_its_columns(dataset: str, tmp_path: Path) -> None:
    what = {"dataset": dataset, "column": "picture", "labels": ["kind", "place"], "images": 100}
    corpus = prepared(tmp_path / "corpus.zarr", **what)
    assert corpus.encoded(0, 3) == [png(1), png(2), png(5)]
    assert [corpus.name(number) for number in range(3)] == [f"some/pictures:{number}" for number in (0, 1, 4)]
    labels = {name: values.tolist() for name, values in corpus.read_labels(0, 3).items()}
    assert corpus.labels == {"kind": ["y", "x"], "place": ["Oslo", "Bergen"]}
    assert labels == {"kind": [0, 1, -1], "place": [0, -1, 1]}
    assert corpus.facts["left_out"] == {"images that do not decode": 1, "records without an image": 1}


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """Two files: as `datasets` writes a column of images, and as anyone may write bytes. One record names a file."""
    (tmp_path / "secret.png").write_bytes(png(9))
    cells = [{"bytes": png(1), "path": "1.png"}, None, {"bytes": None, "path": str(tmp_path / "secret.png")}]
    kinds = {
        "image": datasets.Image(),
        "kind": datasets.ClassLabel(names=["x", "y"]),
        "place": datasets.Value("string"),
    }
    columns = {"image": cells, "kind": [1, 0, 0], "place": ["Oslo", "Oslo", None]}
    (tmp_path / "photos").mkdir()
    datasets.Dataset.from_dict(columns, features=datasets.Features(kinds)).to_parquet(tmp_path / "photos/a.parquet")
    table = pyarrow.table({"place": ["Bergen", "Oslo"], "image": [png(4), png(5)[:45]], "kind": ["y", "z"]})
    pyarrow.parquet.write_table(table, tmp_path / "photos/b.parquet")
    return tmp_path / "photos"


def test_local_files_of_images(parquet: Path, tmp_path: Path) -> None:
    what = {"files": str(parquet / "*.parquet"), "labels": ["kind", "place"], "images": 100}
    corpus = prepared(tmp_path / "corpus.zarr", **what)
    assert corpus.encoded(0, corpus.images) == [png(1), png(4)]
    assert [corpus.name(number) for number in range(2)] == ["a.parquet:0", "b.parquet:0"]
    assert corpus.labels == {"kind": ["y"], "place": ["Oslo", "Bergen"]}
    assert {name: found.tolist() for name, found in corpus.read_labels(0, 2).items()} == {
        "kind": [0, 0],
        "place": [0, 1],
    }
    assert corpus.facts["left_out"] == {"images that do not decode": 1, "records without an image": 2}


def test_a_dataset_of_files(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its records name files instead of holding their bytes."""
    for name in ("cat/notes.txt", "cat/broken.png", "cat/drawing.eps", "huge.png", "0.png", "1.png"):
        (folder / name).unlink()
    shutil.rmtree(folder / "dog/small")
    made = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train", streaming=True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: made)
    corpus = prepared(tmp_path / "corpus.zarr", dataset="some/files", labels=["label"], images=5)
    assert corpus.encoded(0, 1) == [png(0)]
    assert set(corpus.labels["label"]) <= {"bird", "cat", "dog"}


def test_images_without_labels(dataset: str, tmp_path: Path) -> None:
    corpus = prepared(tmp_path / "corpus.zarr", dataset=dataset, column="picture", images=2)
    assert (corpus.labels, corpus.read_labels(0, 2)) == ({}, {})


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"images": 5}, "give exactly one of folder, files, dataset and digits, not none"),
        ({"images": 5, "folder": "x", "digits": True}, "not folder and digits"),
        ({"images": 0, "digits": True}, "images: 0: Input should be greater than 0"),
        ({"digits": True}, "images: missing"),
        ({"images": 5, "digits": True, "labels": ["class"]}, "column and labels are for datasets and files"),
        ({"images": 5, "files": "x.parquet", "split": "test"}, "are for a dataset on the Hub"),
        ({"images": 5, "files": "x.parquet"}, "^files: x.parquet: no such file$"),
        ({"images": 5, "files": "tests"}, r"^files: tests: a folder; give tests/\*.parquet$"),
        ({"images": 5, "files": "README.md"}, "^files: README.md: is no .parquet file; images in files .* folder$"),
        ({"images": 5, "folder": "x", "tokens": 3}, "tokens: unknown key; there are images, folder"),
        (
            {"images": 5, "dataset": "tests"},
            "^dataset tests: is on this machine; give its files as folder: tests or files: tests/\\*.parquet$",
        ),
        ({"images": 5, "folder": "nowhere"}, "folder: nowhere: no such folder"),
        (
            {"images": 5, "dataset": "some/pictures"},
            "column: image: no such column in dataset .*; it has picture, kind, place",
        ),
        ({"images": 5, "dataset": "some/pictures", "column": "picture", "labels": ["a"]}, "labels: a: no such column"),
    ],
)
@pytest.mark.usefixtures("dataset")
def test_mistakes(spec: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        prepare_images(check_spec(spec, ImageCorpusSpec), tmp_path / "corpus.zarr")
    assert not list(tmp_path.iterdir())


def test_no_image_at_all(tmp_path: Path) -> None:
    (tmp_path / "found").mkdir()
    (tmp_path / "found/notes.txt").write_text("nothing")
    with pytest.raises(UserError, match=r"^folder: .*: gives no image \(1 files that are no images\)$"):
        prepare_images(ImageCorpusSpec(folder=str(tmp_path / "found"), images=3), tmp_path / "corpus.zarr")


def test_what_is_no_corpus_stays(tmp_path: Path) -> None:
    (tmp_path / "corpus.zarr").mkdir()
    (tmp_path / "corpus.zarr/thesis").write_text("years of work")
    with pytest.raises(UserError, match="exists and is no corpus of this version"):
        prepare_images(ImageCorpusSpec(digits=True, images=3), tmp_path / "corpus.zarr")
    assert (tmp_path / "corpus.zarr/thesis").exists()


def test_only_files_of_images_are_opened() -> None:
    left_out = LeftOut()
    assert len(list(images(ImageCorpusSpec(digits=True, images=1), left_out))) == 1797
    assert not left_out.counts
