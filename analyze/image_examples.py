"""The images that examples are of, with a latent's activation on every patch; and thumbnails of these images.

Shapes: M examples, P patches of an image.
"""

import io
import json
import pathlib
import shutil
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from analyze.encoded import EncodedRows
from analyze.windows import activations_at, column_at, digits
from harvest.corpora.image_corpus import ImageCorpus
from harvest.corpora.images import decode
from harvest.errors import UserError
from harvest.files import make_folder, write_text
from harvest.store import Store

THUMBNAIL = 64
"""The longer side of an example's image, in pixels."""
THUMBNAILS = 20_000
"""At most so many, some 40 MB: the strongest examples of every latent come first."""


class ImageExamples:
    """Examples whose rows are images, or patches of images."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.facts: dict[str, Any] = store.array("rows/document").attrs.asdict()
        of_patches: dict[str, Any] = store.array("rows/position").attrs.asdict() if store.has("rows/position") else {}
        self.grid: list[int] | None = of_patches.get("grid")
        self.width: int = self.grid[0] * self.grid[1] if self.grid else 1

    def look(self, row_M: np.ndarray, latent_M: np.ndarray, encoded: EncodedRows) -> None:
        """Read what these examples are of, for `describe`."""
        self.images_M = column_at(self.store, "rows/document", row_M).tolist()
        if self.grid:
            self.patches_M = column_at(self.store, "rows/position", row_M)
            rows_MP = (row_M - self.patches_M)[:, None] + np.arange(self.width)
            self.heat_MP = digits(activations_at(encoded, latent_M, rows_MP), 3)

    def describe(self, example: int, _: dict[str, int]) -> dict[str, Any]:
        """`image`, its number; of a patch also `patch`, its place `[down, across]`, and `heat`, the activation on every
        patch of the image, row by row."""
        found: dict[str, Any] = {"image": self.images_M[example]}
        if self.grid:
            found["patch"] = list(divmod(int(self.patches_M[example]), self.grid[1]))
            found["heat"] = self.heat_MP[example].tolist()
        return found

    def write_thumbnails(self, row_N: np.ndarray, output: pathlib.Path, corpus: pathlib.Path | None) -> dict[str, Any]:
        """Thumbnails of the images that rows are of, the first rows first; what the summary says of them.

        Nothing is written if no corpus is given and none is beside the store.
        """
        folder, names = output / "images", {}
        shutil.rmtree(folder, ignore_errors=True)
        make_folder(folder)
        if (opened := self._open(corpus)) is not None:
            numbers = column_at(self.store, "rows/document", row_N)
            _, first = np.unique(numbers, return_index=True)
            height, width = self.facts["pixels"]
            for number in numbers[np.sort(first)[:THUMBNAILS]].tolist():
                (encoded,) = opened.encoded(number, number + 1)
                shown = thumbnail(decode(encoded), height, width, self.facts["squeezed"])
                (folder / f"{number}.jpg").write_bytes(shown)
                names[str(number)] = opened.name(number)
        write_text(folder / "names.json", json.dumps(names, ensure_ascii=False) + "\n")
        return {"grid": self.grid, "pixels": self.facts["pixels"], "count": len(names)}

    def _open(self, path: pathlib.Path | None) -> ImageCorpus | None:
        if path is None:
            if not isinstance(self.store.path, pathlib.Path):
                return None
            path = self.store.path.with_name("corpus.zarr")
            if not path.exists():
                return None
        corpus = ImageCorpus(path)
        if corpus.fingerprint != self.facts["images"]:
            raise UserError(f"corpus {path}: is not the one that the store was harvested from")
        return corpus


def thumbnail(image: Image.Image, height: int, width: int, squeezed: bool) -> bytes:
    """An image as JPEG in the proportions of the model's input, squeezed into these or cut to them."""
    scale = THUMBNAIL / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    file = io.BytesIO()
    (image.resize(size) if squeezed else ImageOps.fit(image, size)).save(file, "JPEG", quality=80)
    return file.getvalue()
