"""Images with their labels, from a folder, a dataset on the Hugging Face Hub or scikit-learn: read, and looked at."""

import hashlib
import io
import pathlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from harvest.config import ImageCorpusSpec
from harvest.corpora.documents import LeftOut
from harvest.corpora.records import check_columns, files_of, labels_of, writable
from harvest.corpora.tables import Table, open_dataset, open_file
from harvest.errors import UserError

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow knows more; EPS, for one, it hands to another program."""
LARGEST_FILE = 2**28
"""Bytes of an encoded image: more than any image has that Pillow would decode."""
DIGIT_PIXELS = 32


@dataclass(frozen=True)
class FoundImage:
    """An encoded image as it was found, its label in each label set, and a name that a reader can find it by."""

    encoded: bytes
    labels: Mapping[str, str]
    name: str


def images(spec: ImageCorpusSpec, left_out: LeftOut) -> Iterator[FoundImage]:
    """The images that `spec` describes, in an order that depends on nothing but them; every one of them decodes.

    `left_out` takes what was read and not yielded. Holds one image at a time, and a folder's list of files.
    Raises `UserError` for a folder that is not there, a dataset out of reach and columns that do not exist.
    """
    for found in _found(spec, left_out):
        reason = reason_to_leave_out(found.encoded)
        if reason is None:
            yield found
        else:
            left_out.add(reason, found.name)


def folders_of(spec: ImageCorpusSpec) -> list[str]:
    """The folder and all folders in it: their times tell that images came or went."""
    if spec.folder is None:
        return []
    folder = pathlib.Path(spec.folder)
    return [str(path) for path in [folder, *sorted(folder.rglob("*"))] if path.is_dir()]


def decode(encoded: bytes) -> Image.Image:
    """The image as a reader sees it: upright, RGB, transparent parts on white; the first frame of several.

    Raises whatever Pillow does for bytes that are no image.
    """
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):  # Pillow would make all but the darkest values white
        return Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8)).convert("RGB")
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    seen = upright.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")


def reason_to_leave_out(encoded: bytes) -> str | None:
    """None for an image that decodes. One of more than `PIL.Image.MAX_IMAGE_PIXELS` is not tried: a small file can
    claim to be an image that fills the memory."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            decode(encoded)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return "images of too many pixels"
    except UnidentifiedImageError:
        return "files that are no images"
    except Exception:  # Pillow's decoders raise what they happen on: OSError, SyntaxError, struct.error, ...
        return "images that do not decode"
    return None


def _found(spec: ImageCorpusSpec, left_out: LeftOut) -> Iterator[FoundImage]:
    if spec.folder is not None:
        return _in_folder(pathlib.Path(spec.folder), left_out)
    if spec.files is not None:
        return _in_files(spec, left_out)
    return _in_dataset(spec, left_out) if spec.dataset is not None else _digits()


def _in_folder(folder: pathlib.Path, left_out: LeftOut) -> Iterator[FoundImage]:
    """Classes are mixed by how far into its class a file is, in the order of the SHA-256 of relative paths: wherever
    one stops, every class is there in its share."""
    if not folder.is_dir():
        raise UserError(f"folder: {folder}: no such folder")
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    digests = {path: hashlib.sha256(path.as_posix().encode(errors="surrogateescape")).digest() for path in paths}
    sizes = Counter(map(_class_of, paths))
    places: Counter[str | None] = Counter()
    order: list[tuple[float, bytes, pathlib.Path]] = []
    for path in sorted(paths, key=lambda path: digests[path]):
        order.append((places[_class_of(path)] / sizes[_class_of(path)], digests[path], path))
        places[_class_of(path)] += 1
    for _, _, path in sorted(order):
        name, label = writable(path.as_posix()), _class_of(path)
        try:
            if (folder / path).stat().st_size > LARGEST_FILE:
                left_out.add("files too large", name)
                continue
            encoded = (folder / path).read_bytes()
        except OSError:
            left_out.add("files that cannot be read", name)
            continue
        yield FoundImage(encoded, {} if label is None else {"class": writable(label)}, name)


def _class_of(path: pathlib.Path) -> str | None:
    return path.parts[0] if len(path.parts) > 1 else None


def _in_dataset(spec: ImageCorpusSpec, left_out: LeftOut) -> Iterator[FoundImage]:
    wanted = [spec.column, *spec.labels]
    table = open_dataset(
        str(spec.dataset), spec.subset, spec.split, spec.revision, wanted, local="folder: {0} or files: {0}/*.parquet"
    )
    return _in_table(f"dataset {spec.dataset}", table, spec, left_out, _bytes_or_file)


def _in_files(spec: ImageCorpusSpec, left_out: LeftOut) -> Iterator[FoundImage]:
    for path in files_of(spec.files or [], like="*.parquet"):
        if path.suffix != ".parquet":
            raise UserError(f"files: {path}: is no .parquet file; images in files of their own are given as folder")
        table = open_file(path, [spec.column, *spec.labels], left_out)
        yield from _in_table(f"files: {path}", table, spec, left_out, _bytes)


def _in_table(
    what: str, table: Table, spec: ImageCorpusSpec, left_out: LeftOut, encoded_in: Callable[[Any], bytes | None]
) -> Iterator[FoundImage]:
    """The images of the table that errors call `what`. `encoded_in`: a cell's value -> its encoded image, if any."""
    check_columns(what, table, spec.column, spec.labels)
    for name, record in table.rows:
        encoded = encoded_in(record.get(spec.column))
        if encoded is None:
            left_out.add("records without an image", name)
        else:
            yield FoundImage(encoded, labels_of(table, record, spec.labels), writable(name))


def _bytes(value: Any) -> bytes | None:
    """Those that a cell holds, as they are or as Hugging Face keeps an image: `{bytes, path}`."""
    value = value.get("bytes") if isinstance(value, dict) else value
    return value if isinstance(value, bytes) else None


def _bytes_or_file(value: Any) -> bytes | None:
    """Also those of a file that a dataset on the Hub names. What a file on this machine names is not followed: it could
    be any file, or an address on the network."""
    if (found := _bytes(value)) is not None or not isinstance(value, dict) or not value.get("path"):
        return found
    import fsspec  # opens files on the Hub and inside archives; datasets has imported it by now

    try:
        with fsspec.open(value["path"], "rb") as file:
            return bytes(file.read())
    except OSError:
        return None


def _digits() -> Iterator[FoundImage]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (image, target) in enumerate(zip(digits.images, digits.target, strict=True)):
        grey = Image.fromarray((image * 255 / 16).astype(np.uint8))
        file = io.BytesIO()
        grey.resize((DIGIT_PIXELS, DIGIT_PIXELS), Image.Resampling.NEAREST).convert("RGB").save(file, "PNG")
        yield FoundImage(file.getvalue(), {"class": str(target)}, f"digits:{number}")
