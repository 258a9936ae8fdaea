"""Top examples in their surroundings: of text, the tokens around each, with the latent's activation on every one; of
images, the image."""

import base64
import codecs
import io
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from analyze.latents import LatentStatistics
from harvest.corpora.image_corpus import ImageCorpus
from harvest.corpora.images import decode
from harvest.errors import UserError
from harvest.store import Store

BEFORE, AFTER = 12, 8
"""Tokens of the same document shown before and after an example."""
SHOWN = 256
"""Latents with examples: an even choice from the live ones in the order of their firing rate."""

THUMBNAIL = 64
"""The longer side of an example's image, in pixels."""


def examples(store: Store, latents: LatentStatistics) -> dict[str, Any]:
    """`{"latents": [{"latent", "examples": [...]}]}`, the most frequent latent first, its most active example first.

    An example has its `row` and `activation`, its `labels` (label set -> name), and, where rows are tokens, `tokens`: a
    list of `[text, activation]`, and `peak`, the place of the example's own token in it. Activations in these lists
    have four digits. Tokens that share a character are one entry, with the larger activation.
    Where rows are of images it has `image`, its number, and of a patch `patch`, its place `[down, across]`. Beside
    `latents` there are then `images` (number -> `name` and `thumbnail`, a data URI; empty if the corpus is not beside
    the store), `grid` (patches down and across; null where rows are whole images) and `pixels`, the model's height and
    width.
    """
    chosen_L = choose(latents.firing_F, SHOWN)
    rows_LE = latents.example_rows_FE[chosen_L]
    labels = _labels(store, rows_LE[rows_LE >= 0])
    around = _surroundings(store, rows_LE[rows_LE >= 0])
    found = []
    for latent in chosen_L.tolist():
        of_latent = []
        for row, activation, window_W in zip(
            latents.example_rows_FE[latent].tolist(),
            latents.example_values_FE[latent].tolist(),
            latents.windows_FEW[latent],
            strict=True,
        ):
            if row >= 0:
                example = {"row": row, "activation": activation, "labels": labels.get(row, {})}
                of_latent.append(example | (around.around(row, window_W) if around else {}))
        found.append({"latent": latent, "examples": of_latent})
    return {"latents": found, **(around.shared() if around else {})}


def choose(firing_F: np.ndarray, count: int) -> np.ndarray:
    """At most `count` live latents, evenly spaced in the order of firing rate, the most frequent first."""
    order_F = np.lexsort((np.arange(len(firing_F)), -firing_F))
    live = order_F[: int((firing_F > 0).sum())]
    return live[np.linspace(0, len(live) - 1, min(count, len(live))).round().astype(np.int64)]


def _labels(store: Store, rows: np.ndarray) -> dict[int, dict[str, str]]:
    unique = np.unique(rows)
    found: dict[int, dict[str, str]] = {row: {} for row in unique.tolist()}
    for name, names in store.labels.items():
        for row, label in zip(unique.tolist(), _at(store, f"rows/labels/{name}", unique).tolist(), strict=True):
            if label >= 0:
                found[row][name] = names[label]
    return found


def _surroundings(store: Store, rows: np.ndarray) -> "_Text | _Images | None":
    if store.has("rows/token"):
        return _Text(store, rows)
    of_images = store.has("rows/document") and "images" in store.array("rows/document").attrs
    return _Images(store, rows) if of_images else None


class _Text:
    """The tokens around some rows. Every chunk that holds one is read once."""

    def __init__(self, store: Store, rows: np.ndarray) -> None:
        around = rows[:, None] + np.arange(-BEFORE, AFTER + 1)
        self.rows = np.unique(around[(around >= 0) & (around < store.rows)])
        self.documents = _at(store, "rows/document", self.rows)
        self.tokens = _at(store, "rows/token", self.rows)
        self.bytes: bytes = np.asarray(store.array("vocabulary/bytes")[:]).tobytes()
        self.offsets: list[int] = np.asarray(store.array("vocabulary/offsets")[:]).tolist()

    def around(self, row: int, window_W: np.ndarray) -> dict[str, Any]:
        here = int(np.searchsorted(self.rows, row))
        window = slice(max(0, here - BEFORE), here + AFTER + 1)
        steps = self.rows[window] - row
        kept = (self.documents[window] == self.documents[here]) & (steps >= -BEFORE) & (steps <= AFTER)
        steps = steps[kept]
        pieces = [
            self.bytes[self.offsets[token] : self.offsets[token + 1]] for token in self.tokens[window][kept].tolist()
        ]
        texts, which = join_tokens(pieces)
        activations = np.zeros(len(texts), np.float32)
        np.maximum.at(activations, which, window_W[steps + BEFORE])
        return {
            "tokens": [[text, float(f"{value:.4g}")] for text, value in zip(texts, activations.tolist(), strict=True)],
            "peak": which[int(np.flatnonzero(steps == 0)[0])],
        }

    def shared(self) -> dict[str, Any]:
        return {}


class _Images:
    """The images that some rows are of, from the corpus beside the store."""

    def __init__(self, store: Store, rows: np.ndarray) -> None:
        self.rows = np.unique(rows)
        self.images = _at(store, "rows/document", self.rows)
        self.patches = _at(store, "rows/position", self.rows) if store.has("rows/position") else None
        self.grid: Any = store.array("rows/position").attrs["grid"] if store.has("rows/position") else None
        self.facts: dict[str, Any] = store.array("rows/document").attrs.asdict()
        self.corpus = store.path.with_name("corpus.zarr")

    def around(self, row: int, _: np.ndarray) -> dict[str, Any]:
        here = int(np.searchsorted(self.rows, row))
        found: dict[str, Any] = {"image": int(self.images[here])}
        if self.patches is not None:
            found["patch"] = list(divmod(int(self.patches[here]), self.grid[1]))
        return found

    def shared(self) -> dict[str, Any]:
        return {"images": self._thumbnails(), "grid": self.grid, "pixels": self.facts["pixels"]}

    def _thumbnails(self) -> dict[str, Any]:
        if not self.corpus.exists():
            return {}
        corpus = ImageCorpus(self.corpus)
        if corpus.fingerprint != self.facts["images"]:
            raise UserError(f"corpus {self.corpus}: is not the one that the store beside it was harvested from")
        height, width = self.facts["pixels"]
        found = {}
        for number in np.unique(self.images).tolist():
            (encoded,) = corpus.encoded(number, number + 1)
            shown = thumbnail(decode(encoded), height, width, self.facts["squeezed"])
            found[str(number)] = {"name": corpus.name(number), "thumbnail": shown}
        return found


def thumbnail(image: Image.Image, height: int, width: int, squeezed: bool) -> str:
    """An image in the proportions of the model's input, squeezed into these or cut to them, as a data URI."""
    scale = THUMBNAIL / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    file = io.BytesIO()
    (image.resize(size) if squeezed else ImageOps.fit(image, size)).save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def join_tokens(pieces: list[bytes]) -> tuple[list[str], list[int]]:
    """Texts of tokens, and which of these each token went to: tokens are joined while they end inside a character.

    Bytes that are no UTF-8, such as a character cut off by the window, become U+FFFD.
    """
    texts: list[str] = []
    which: list[int] = []
    pending = b""
    for piece in pieces:
        which.append(len(texts))
        pending += piece
        if not _ends_inside_character(pending):
            texts.append(pending.decode(errors="replace"))
            pending = b""
    return texts + ([pending.decode(errors="replace")] if pending else []), which


def _ends_inside_character(text: bytes) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    decoder.decode(text)
    return decoder.getstate()[0] != b""


def _at(store: Store, path: str, rows: np.ndarray) -> np.ndarray:
    return np.asarray(store.array(path).oindex[rows])
