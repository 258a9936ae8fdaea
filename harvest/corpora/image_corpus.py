"""A prepared image corpus: images as they were encoded, and what is known of each.

corpus.zarr/                        N images
  images/bytes, /offsets            uint8, one image after the other; (N + 1,) int64
  names/bytes, /offsets             where each was found, UTF-8; (N + 1,) int64
  labels/<set>                      (N,) int32 into the attribute `names`, -1 for none
"""

import pathlib

import numpy as np
import zarr

from harvest.corpora.prepared import Prepared


class ImageCorpus(Prepared):
    """What `harvest.corpora.prepare` wrote of images, opened for reading.

    Only the offsets of the images (8 bytes each) are held in memory.
    Raises `UserError` if `path` is no such corpus.
    """

    schema = "images 1"

    def __init__(self, path: str | pathlib.Path) -> None:
        super().__init__(path)
        self.images: int = self.facts["images"]
        self.offsets = self._read("images/offsets", 0, None)

    def encoded(self, start: int, stop: int) -> list[bytes]:
        """Images `start` to `stop`, each a file of its own; `harvest.corpora.images.decode` opens it."""
        offsets = self.offsets[start : stop + 1] - self.offsets[start]
        whole = self._read("images/bytes", int(self.offsets[start]), int(self.offsets[stop])).tobytes()
        return [whole[offsets[i] : offsets[i + 1]] for i in range(stop - start)]

    def read_labels(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Label set -> the labels of images `start` to `stop`: indices into its names, -1 for none, int32."""
        return {name: self._read(f"labels/{name}", start, stop) for name in self.labels}

    def name(self, image: int) -> str:
        """Where the image was found: its path in the folder, or its number in the dataset."""
        return self._string("names", image)


def holds_images(path: pathlib.Path) -> bool:
    """Whether a corpus of images lies there; what is no corpus at all does not."""
    try:
        return str(zarr.open_group(path, mode="r").attrs.get("schema")).startswith("images ")
    except (OSError, ValueError, KeyError):
        return False
