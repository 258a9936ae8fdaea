"""A vision model looking at a corpus of images, as a source of rows: one row a patch or an image, sites in one pass.

Shapes: B images, T tokens an image (class token and registers, then P patches, row by row), D width, N rows.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from harvest.config import HarvestSpec, ModelSpec
from harvest.corpora.image_corpus import ImageCorpus
from harvest.corpora.images import decode
from harvest.errors import UserError
from harvest.models.capture import Site, run_until_captured
from harvest.models.load import model_facts
from harvest.models.sites import chosen_sites
from harvest.models.vision import load_vision
from harvest.source import Column, label_columns

AHEAD = 3
"""Batches that are decoded and preprocessed, a thread each, while the model runs on the one before."""

Part = TypeVar("Part")
Made = TypeVar("Made")


class ImageSource:
    """Rows `start` to `stop` come from the images that hold them, in batches from the first of these on.

    An image that straddles two shards is run for both, so that a shard's bytes depend on nothing but its number.
    """

    def __init__(self, model: ModelSpec, corpus: ImageCorpus, harvest: HarvestSpec) -> None:
        if harvest.rows == "tokens":
            raise UserError("rows: tokens: is for text; a row of images is one of their patches, or an image")
        self.corpus = corpus
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tower = load_vision(model, self.device)
        self.sites, self.aliases = chosen_sites(self.tower, harvest.sites)
        self.dtype: str = model.dtype
        pixels_BCHW = self._pixels(range(1))
        tokens, shapes = self._look(pixels_BCHW)
        patches = tokens - self.tower.prefix
        self.whole = rows_are_images(harvest.rows, self.sites, shapes, self.tower.has_cls)
        self.rows_an_image = 1 if self.whole else patches
        self.rows = corpus.images * self.rows_an_image
        self.batch_images = max(1, harvest.batch_tokens // tokens)
        self.widths: Mapping[str, int] = {site.name: shapes[site.name][-1] for site in self.sites}
        pixels = list(pixels_BCHW.shape[2:])
        grid = None if self.whole else _grid(patches, *pixels)
        self.facts: Mapping[str, Any] = {
            "model": model_facts(model),
            "corpus": corpus.fingerprint,
            "sites": [site.name for site in self.sites],
            "rows_are": "images" if self.whole else "patches",
            "pixels": pixels,
            "grid": grid,
            "dtype": model.dtype,
            "batch_tokens": harvest.batch_tokens,
        }
        # Images lie in the corpus beside the store; these tell that it is the one, and what the model sees of each.
        of_images = {"images": corpus.fingerprint, "pixels": pixels, "squeezed": _squeezes(self.tower.preprocess)}
        self.columns: Mapping[str, Column] = {
            "rows/document": Column("int32", None, of_images),
            **({} if self.whole else {"rows/position": Column("int32", None, {"grid": grid})}),
            **label_columns(corpus.labels),
        }
        self.tables: Mapping[str, np.ndarray] = {}

    def read_columns(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """`rows/document`: the number of the image; `rows/position`: the number of the patch, row by row."""
        image_N, patch_N = np.divmod(np.arange(start, stop), self.rows_an_image)
        first, last = self._images_of(start, stop)
        labels = self.corpus.read_labels(first, last)
        columns = {"rows/document": image_N, "rows/position": patch_N}
        columns |= {f"rows/labels/{name}": values[image_N - first] for name, values in labels.items()}
        return {path: values.astype(np.int32) for path, values in columns.items() if path in self.columns}

    def read_sites(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        first, last = self._images_of(start, stop)
        dtype = getattr(torch, self.dtype)
        filled = {site: torch.empty(stop - start, width, dtype=dtype) for site, width in self.widths.items()}
        batches = [range(i, min(i + self.batch_images, last)) for i in range(first, last, self.batch_images)]
        for images, pixels_BCHW in zip(batches, _ahead(self._pixels, batches), strict=True):
            begin, end = images.start * self.rows_an_image, images.stop * self.rows_an_image
            wanted = slice(max(start - begin, 0), min(stop, end) - begin)

            def take(_: Site, value: torch.Tensor, wanted: slice = wanted) -> torch.Tensor:
                return self._rows_of(value)[wanted].to("cpu", dtype, copy=True)

            for site, x_ND in self._run(self.sites, pixels_BCHW, take).items():
                filled[site][max(begin - start, 0) : min(stop, end) - start] = x_ND
        return filled

    def _images_of(self, start: int, stop: int) -> tuple[int, int]:
        """The images `[first, last)` that hold rows `start` to `stop`."""
        return start // self.rows_an_image, -(-stop // self.rows_an_image)

    def _rows_of(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, T, D)` or `(B, D)` -> `(N, D)`."""
        if not self.whole:
            return x[:, self.tower.prefix :].flatten(0, 1)
        return x if x.ndim == 2 else x[:, 0]

    def _pixels(self, images: range) -> torch.Tensor:
        encoded = self.corpus.encoded(images.start, images.stop)
        return torch.stack([self.tower.preprocess(decode(each)) for each in encoded])

    def _run(
        self, sites: Iterable[Site], pixels_BCHW: torch.Tensor, take: Callable[[Site, torch.Tensor], torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        dtype = next(self.tower.parameters()).dtype
        return run_until_captured(self.tower, list(sites), {"pixel_values": pixels_BCHW.to(self.device, dtype)}, take)

    def _look(self, pixels_1CHW: torch.Tensor) -> tuple[int, dict[str, tuple[int, ...]]]:
        """Tokens of an image in the layers, and each site's shape for a batch of three: `(3, T, D)` or `(3, D)`."""
        shapes: dict[str, tuple[int, ...]] = {}

        def note(site: Site, value: torch.Tensor) -> torch.Tensor:
            shapes[site.name] = tuple(value.shape)
            return value

        layers = [site for site in self.tower.named_sites() if site.name.startswith("layers.")]
        everywhere = {site.name: site for site in [*layers, *self.sites]}.values()
        self._run(everywhere, pixels_1CHW.expand(3, -1, -1, -1), note)
        # A tower without tokens counts as many as patches of 16 pixels would be.
        tokens = shapes[layers[-1].name][1] if layers else max(1, pixels_1CHW[0, 0].numel() // 16**2)
        for site in self.sites:
            shape = shapes.get(site.name)
            if shape is None:
                raise UserError(f"{site.name}: a forward pass of this model gives no tensor there")
            if shape[:-1] not in ((3,), (3, tokens)):
                raise UserError(f"{site.name}: its shape {shape} for 3 images is not one vector a token or an image")
        return tokens, shapes


def rows_are_images(
    wanted: str | None, sites: Iterable[Site], shapes: Mapping[str, tuple[int, ...]], has_cls: bool
) -> bool:
    pooled = [site.name for site in sites if len(shapes[site.name]) == 2]
    of_tokens = [site.name for site in sites if len(shapes[site.name]) == 3]
    if wanted == "images" or (wanted is None and not of_tokens):
        if of_tokens and not has_cls:
            raise UserError(
                f"{of_tokens[0]}: this model has no class token to stand for an image; take `rows: patches`, or pooled"
            )
        return True
    if pooled:
        raise UserError(
            f"{pooled[0]}: has one vector an image and none a patch; make two harvests, one of it with `rows: images` "
            "and one of the others with `rows: patches`"
        )
    return False


def _squeezes(preprocess: Callable[[Image.Image], torch.Tensor]) -> bool:
    """Whether a wide image is squeezed into the model's input; otherwise its middle is cut out."""
    black = Image.new("RGB", (256, 128), "black")
    striped = black.copy()
    striped.paste("white", (64, 0, 192, 128))  # the middle square
    # The left edge is white only where nothing beside the middle is seen.
    return bool((preprocess(striped) - preprocess(black))[:, :, 0].abs().max() < 0.1)


def _grid(patches: int, height: int, width: int) -> list[int]:
    """Patches from top to bottom and from left to right; they are square."""
    side = (height * width / patches) ** 0.5
    rows, columns = round(height / side), round(width / side)
    assert rows * columns == patches, (patches, height, width)
    return [rows, columns]


def _ahead(make: Callable[[Part], Made], parts: Iterable[Part]) -> Iterator[Made]:
    """What `make` gives for each part, in order; the next few are made meanwhile."""
    with ThreadPoolExecutor(AHEAD) as threads:
        pending: deque[Future[Made]] = deque()
        for part in parts:
            pending.append(threads.submit(make, part))
            if len(pending) > AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
