"""What a harvest costs before it is made. Imports nothing heavy: the Snakefile plans with it.

Bytes are those on disk or in memory, FLOPs two for each multiplication and addition.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harvest.bench.config import BenchSpec
from harvest.config import CorpusSpec, HarvestSpec, ImageCorpusSpec
from harvest.errors import UserError
from harvest.layout import ITEM_BYTES, Layout, sites_bytes

PROGRAM_BYTES = 2**29
"""What Python takes with torch and transformers before it does anything."""
SHARDS_HELD = 3
"""One that is filled, one that is being written, and what Zarr holds of it."""
ACTIVE_BYTES = 6.6
"""An active coefficient of the bench as it is stored: compressed, with where it is."""


@dataclass(frozen=True)
class Sites:
    """What the sites of a harvest hold."""

    widths: Mapping[str, int]
    """By the names in the store."""
    rows: int | None = None
    """That one pass gives, of one text or image; None where they are the tokens that are kept."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """A site as the config writes it -> as it is stored."""

    def width(self, site: str) -> int:
        name = self.aliases.get(site, site)
        if name not in self.widths:
            raise UserError(f"{site}: no such site in the harvest; it has {', '.join(self.widths)}")
        return self.widths[name]


@dataclass(frozen=True)
class Footprint:
    """A model's size, and what one pass of it takes: over one text or image, up to the deepest site."""

    sites: Sites
    parameters: int
    weight_bytes: int
    tokens: int
    flops: float
    activation_bytes: int


@dataclass(frozen=True)
class HarvestPlan:
    rows: int
    sites: Sites
    dtype: str
    store_bytes: int
    corpus_bytes: int | None
    """None: of images, whose sizes are known once they are there."""
    host_bytes: int
    """Memory beside the model's."""
    device_bytes: int = 0
    """The model's weights, and a batch in it."""
    flops: float = 0
    tokens: int = 0
    """That the model reads or sees."""

    @property
    def row_bytes(self) -> int:
        return sum(self.sites.widths.values()) * ITEM_BYTES[self.dtype]


def plan_harvest(
    spec: HarvestSpec,
    corpus: CorpusSpec | ImageCorpusSpec,
    prepared: Mapping[str, Any] | None,
    dtype: str,
    sites: Sites,
    footprint: Footprint | None,
) -> HarvestPlan | None:
    """A harvest of a model; `prepared` are the facts of its corpus, where that is there. Without a `footprint` nothing
    is said of the model. None where the number of rows is not known before the corpus is prepared: rows of texts."""
    facts = prepared or {}
    if isinstance(corpus, ImageCorpusSpec):
        texts_or_images = float(facts.get("images", corpus.images))
        rows = int(texts_or_images) * (sites.rows or 1)
        columns = 4 * (1 + (sites.rows != 1) + len(corpus.label_sets))
        corpus_bytes = int(facts["bytes"]) if "bytes" in facts else None
    else:
        read, labels = int(facts.get("tokens", corpus.tokens)), [*corpus.label_sets, *corpus.lexicons]
        corpus_bytes = read * (13 + 4 * len(labels))
        if sites.rows is None:
            rows, columns = int(facts.get("rows", corpus.tokens)), 4 * (3 + len(labels))
            texts_or_images = read / footprint.tokens if footprint else 0
        elif "sequences" in facts:
            rows, columns = int(facts["sequences"]), 4 * (1 + len(corpus.label_sets))
            texts_or_images = rows
        else:
            return None
    flops, tokens, device = 0.0, 0, 0
    if footprint is not None:
        flops, tokens = texts_or_images * footprint.flops, round(texts_or_images * footprint.tokens)
        batch = max(1, spec.batch_tokens // footprint.tokens)
        device = footprint.weight_bytes + batch * footprint.activation_bytes
    return HarvestPlan(
        rows,
        sites,
        dtype,
        sites_bytes(rows, sites.widths, dtype) + rows * columns,
        corpus_bytes,
        _host_bytes(rows, sites, dtype, columns),
        device,
        flops,
        tokens,
    )


def plan_bench(spec: BenchSpec) -> HarvestPlan:
    sites, dtype = Sites(spec.sites), "float32"
    active = spec.rows * spec.features * (1 - spec.sparsity)
    truth = int(active * ACTIVE_BYTES) + 4 * spec.features * sum(spec.sites.values())
    store = sites_bytes(spec.rows, spec.sites, dtype) + truth
    return HarvestPlan(spec.rows, sites, dtype, store, 0, _host_bytes(spec.rows, sites, dtype, 4 * spec.features))


def _host_bytes(rows: int, sites: Sites, dtype: str, columns: int) -> int:
    shard = min(rows, Layout.of(rows, sites.widths, dtype).shard_rows)
    row = sum(sites.widths.values()) * ITEM_BYTES[dtype] + columns
    return PROGRAM_BYTES + SHARDS_HELD * shard * row
