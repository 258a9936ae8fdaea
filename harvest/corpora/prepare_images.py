"""Keep a corpus's images; `harvest.corpora.image_corpus` says how they lie on disk and reads them."""

import hashlib
import json
import pathlib
from typing import Any

import numpy as np
import zarr

from harvest.config import ImageCorpusSpec
from harvest.corpora.documents import LeftOut
from harvest.corpora.folder import write_whole
from harvest.corpora.image_corpus import ImageCorpus
from harvest.corpora.images import FoundImage, images
from harvest.corpora.writer import GrowingArray
from harvest.errors import UserError
from harvest.progress import progress


def prepare_images(spec: ImageCorpusSpec, output: pathlib.Path) -> dict[str, Any]:
    """Write the images that `spec` describes to the folder `output` and return its facts (the group's attributes).

    Every image was decoded once, and is kept as it was encoded; nothing else is read afterwards. Memory holds one chunk
    per array, whatever the corpus's length. `output` is replaced once the new one is complete.
    Raises `UserError` where no image is found, or where `output` is something other than a corpus.
    """
    return write_whole(output, lambda beside: _write(spec, beside))


def _write(spec: ImageCorpusSpec, path: pathlib.Path) -> dict[str, Any]:
    writer, left_out = _Writer(zarr.create_group(path), spec.label_sets), LeftOut()
    with progress(spec.images, "corpus", "image") as bar:
        for image in images(spec, left_out):
            writer.add(image)
            bar.update(1)
            if writer.images == spec.images:
                break
    if writer.images == 0:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.counts.items()))
        source = next(key for key in ("folder", "files", "dataset", "digits") if getattr(spec, key))
        raise UserError(f"{source}: {getattr(spec, source)}: gives no image ({reasons or 'there are no files'})")
    facts = {
        "schema": ImageCorpus.schema,
        "spec": spec.model_dump(mode="json"),
        "complete": writer.images == spec.images,  # false: the corpus ended before the budget was reached
        "left_out": dict(sorted(left_out.counts.items())),
        "left_out_names": left_out.names,
        **writer.finish(),
    }
    writer.group.update_attributes(facts)
    return facts


class _Writer:
    """Appends images to the arrays of a corpus."""

    def __init__(self, group: zarr.Group, label_sets: list[str]) -> None:
        self.group, self.images = group, 0
        self.numbers: dict[str, dict[str, int]] = {name: {} for name in label_sets}
        kinds = dict.fromkeys(("images/bytes", "names/bytes"), "uint8")
        kinds |= dict.fromkeys(("images/offsets", "names/offsets"), "int64")
        kinds |= dict.fromkeys((f"labels/{name}" for name in label_sets), "int32")
        self.arrays = {path: GrowingArray(group, path, np.dtype(kind)) for path, kind in kinds.items()}
        self.ends = {"images": 0, "names": 0}
        for part in self.ends:
            self.arrays[f"{part}/offsets"].append(np.zeros(1, np.int64))

    def add(self, image: FoundImage) -> None:
        for part, whole in (("images", image.encoded), ("names", image.name.encode(errors="replace"))):
            self.ends[part] += len(whole)
            self.arrays[f"{part}/bytes"].append(np.frombuffer(whole, np.uint8))
            self.arrays[f"{part}/offsets"].append(np.array([self.ends[part]]))
        for name, numbers in self.numbers.items():
            label = image.labels.get(name)
            number = -1 if label is None else numbers.setdefault(label, len(numbers))
            self.arrays[f"labels/{name}"].append(np.array([number]))
        self.images += 1

    def finish(self) -> dict[str, Any]:
        """Write what is still held; returns the counts, and the fingerprint: a SHA-256 of all arrays and names."""
        contents = {path: array.finish() for path, array in self.arrays.items()}
        labels = {name: list(numbers) for name, numbers in self.numbers.items()}
        for name, names in labels.items():
            self.arrays[f"labels/{name}"].array.update_attributes({"names": names})
        whole = json.dumps({"arrays": contents, "labels": labels}, sort_keys=True)
        size = self.ends["images"]
        return {"images": self.images, "bytes": size, "fingerprint": hashlib.sha256(whole.encode()).hexdigest()}
