"""The rows that show what each latent is about, in packs: its strongest, and some of every quantile."""

import contextlib
import gc
import gzip
import itertools
import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np

from analyze.encoded import EncodedRows
from analyze.image_examples import ImageExamples
from analyze.text_examples import TextExamples
from analyze.windows import column_at, digits
from harvest.files import make_folder
from harvest.progress import progress
from harvest.store import Store

PACK = 256
"""Latents in a pack."""
ENTRIES_AT_ONCE = 2**25
"""Tokens, or patches, that are looked up together."""


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """While this lasts, Python looks for no cycles: in these many small lists and dicts there are none, and to go
    through them again and again takes a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@without_collector()
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
    latents = len(tops[0])
    rows_FM = np.concatenate([tops[0], groups[0].reshape(latents, -1)], 1)
    values_FM = digits(np.concatenate([tops[1], groups[1].reshape(latents, -1)], 1), 4)
    around = _surroundings(store)
    at_once = max(1, ENTRIES_AT_ONCE // (PACK * rows_FM.shape[1] * (around.width if around else 1))) * PACK
    counts_FG = (groups[0] >= 0).sum(2)
    with progress(latents, "examples", "latent") as bar:
        for begin in range(0, latents, at_once):
            here = slice(begin, begin + at_once)
            described = _Described(store, encoded, around, begin, rows_FM[here], values_FM[here])
            for first in range(begin, min(begin + at_once, latents), PACK):
                pack = range(first, min(first + PACK, latents))
                _write_pack(folder / f"{first // PACK}.json.gz", _pack(pack, rows_FM, counts_FG, described))
                bar.update(len(pack))
    facts: dict[str, Any] = {"packs": -(-latents // PACK)}
    if isinstance(around, ImageExamples):
        strongest_first = rows_FM.T[rows_FM.T >= 0]
        facts["images"] = around.write_thumbnails(strongest_first, output, corpus)
    return facts


def _pack(latents: range, rows_FM: np.ndarray, counts_FG: np.ndarray, described: "_Described") -> dict[str, Any]:
    texts: dict[str, int] = {}
    found = {}
    for latent in latents:
        examples = [described.next(texts) for row in rows_FM[latent].tolist() if row >= 0]
        if examples:
            counts = counts_FG[latent].tolist()
            edges = itertools.accumulate([len(examples) - sum(counts), *counts])
            top, *quantiles = (examples[a:b] for a, b in itertools.pairwise([0, *edges]))
            found[str(latent)] = {"top": top, "quantiles": quantiles}
    return {"texts": list(texts), "latents": found}


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
    """The examples of some latents, one after the other, latent by latent."""

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
        self.around, self.names, self.numbers = around, store.labels, itertools.count()
        self.rows, self.values = row_N.tolist(), values_LM[latent_N, place_N].tolist()
        self.labels = {name: column_at(store, f"rows/labels/{name}", row_N).tolist() for name in self.names}
        if around is not None:
            around.look(row_N, latent_N + begin, encoded)

    def next(self, texts: dict[str, int]) -> dict[str, Any]:
        number = next(self.numbers)
        labels = {name: self.names[name][of[number]] for name, of in self.labels.items() if of[number] >= 0}
        found = {"row": self.rows[number], "activation": self.values[number], "labels": labels}
        return found | (self.around.describe(number, texts) if self.around is not None else {})
