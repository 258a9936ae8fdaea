"""The rows that show what each latent is about, in packs: its strongest, and some of every quantile."""

import gzip
import json
import pathlib
import shutil
from itertools import count, pairwise
from typing import Any

import numpy as np

from analyze.encoded import EncodedRows
from analyze.image_examples import ImageExamples
from analyze.text_examples import TextExamples
from analyze.windows import column_at, digits
from harvest.files import make_folder
from harvest.store import Store

PACK = 256
"""Latents in a pack."""
ENTRIES_AT_ONCE = 2**25
"""Tokens, or patches, that are looked up together."""


def write_examples(
    store: Store,
    encoded: EncodedRows,
    tops: tuple[np.ndarray, np.ndarray],
    groups: tuple[np.ndarray, np.ndarray],
    output: pathlib.Path,
    corpus: pathlib.Path | None,
) -> dict[str, Any]:
    """Write `examples/<pack>.json.gz` for all latents that have any, `PACK` to a pack, and thumbnails of images.

    `tops`: rows and activations `(F, E)`, -1 for none; `groups`: those `(F, G, X)` of each quantile group. A pack is
    `{"texts": [...], "latents": {number: {"top": [...], "quantiles": [[...], ...]}}}`. An example has its `row`,
    `activation` (four digits) and `labels` (label set -> name), and what `TextExamples` or `ImageExamples` says of it,
    whose `tokens` are places in `texts`. Images are those of `corpus`, or of the one beside the store. Returns what
    the summary says of them all.
    """
    folder = output / "examples"
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder)
    latents, top, (many, each) = len(tops[0]), tops[0].shape[1], groups[0].shape[1:]
    rows_FM = np.concatenate([tops[0], groups[0].reshape(latents, -1)], 1)
    values_FM = digits(np.concatenate([tops[1], groups[1].reshape(latents, -1)], 1), 4)
    around = _surroundings(store)
    at_once = max(1, ENTRIES_AT_ONCE // (PACK * rows_FM.shape[1] * (around.width if around else 1))) * PACK
    for begin in range(0, latents, at_once):
        here = slice(begin, begin + at_once)
        described, numbers = _Described(store, encoded, around, begin, rows_FM[here], values_FM[here]), count()
        for pack in range(begin // PACK, -(-min(begin + at_once, latents) // PACK)):
            texts: dict[str, int] = {}
            found = {}
            for latent in range(pack * PACK, min((pack + 1) * PACK, latents)):
                examples = [described.example(next(numbers), texts) for row in rows_FM[latent].tolist() if row >= 0]
                counts = (rows_FM[latent, top:].reshape(many, each) >= 0).sum(1).tolist()
                edges = np.cumsum([len(examples) - sum(counts), *counts]).tolist()
                if examples:
                    parts = [examples[a:b] for a, b in pairwise([0, *edges])]
                    found[str(latent)] = {"top": parts[0], "quantiles": parts[1:]}
            _write_pack(folder / f"{pack}.json.gz", {"texts": list(texts), "latents": found})
    facts: dict[str, Any] = {"packs": -(-latents // PACK)}
    if isinstance(around, ImageExamples):
        strongest_first = rows_FM.T[rows_FM.T >= 0]
        facts["images"] = around.write_thumbnails(strongest_first, output, corpus)
    return facts


def read_pack(file: pathlib.Path) -> Any:
    return json.loads(gzip.decompress(file.read_bytes()))


def _write_pack(file: pathlib.Path, contents: Any) -> None:
    text = json.dumps(contents, ensure_ascii=False, separators=(",", ":"))
    # No time in the file, so that the same measurement gives the same bytes.
    file.write_bytes(gzip.compress(text.encode(errors="surrogatepass"), 6, mtime=0))


def _surroundings(store: Store) -> TextExamples | ImageExamples | None:
    if store.has("rows/token"):
        return TextExamples(store)
    of_images = store.has("rows/document") and "images" in store.array("rows/document").attrs
    return ImageExamples(store) if of_images else None


class _Described:
    """The examples of some latents, numbered latent by latent."""

    def __init__(
        self,
        store: Store,
        encoded: EncodedRows,
        around: TextExamples | ImageExamples | None,
        begin: int,
        rows_LM: Any,
        values_LM: Any,
    ) -> None:
        latent_N, place_N = np.nonzero(rows_LM >= 0)
        row_N = rows_LM[latent_N, place_N]
        self.around, self.names = around, store.labels
        self.rows, self.values = row_N.tolist(), values_LM[latent_N, place_N].tolist()
        self.labels = {name: column_at(store, f"rows/labels/{name}", row_N).tolist() for name in self.names}
        if around is not None:
            around.look(row_N, latent_N + begin, encoded)

    def example(self, number: int, texts: dict[str, int]) -> dict[str, Any]:
        labels = {name: self.names[name][of[number]] for name, of in self.labels.items() if of[number] >= 0}
        found = {"row": self.rows[number], "activation": self.values[number], "labels": labels}
        return found | (self.around.describe(number, texts) if self.around is not None else {})
