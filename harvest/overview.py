"""What a store holds, and what sites a model has, as text for a person."""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence

import zarr
import zarr.errors

from harvest.models.listing import Listed
from harvest.store import Store

SHORT = 88
"""Characters of a fact or of a list of names; the rest is dots."""


def describe_sites(by_input: Mapping[str, Mapping[str, Listed] | str]) -> str:
    """A line a site, in a table for each kind of input. A site without a vector per token cannot be stored."""
    titles = {kind: [f"site ({kind})", "width", "rows"] for kind in by_input}
    return "\n\n".join(
        f"{kind}: {sites}" if isinstance(sites, str) else table(titles[kind], list(_lines(sites)))
        for kind, sites in by_input.items()
    )


def _lines(sites: Mapping[str, Listed]) -> Iterator[tuple[str, str, str]]:
    for name, site in sites.items():
        yield name, "no vector per token" if site.width is None else str(site.width), " or ".join(site.rows)


def describe_store(store: Store) -> str:
    """Its sizes, sites, labels and arrays, and where its rows come from."""
    finished = store.finished
    sizes = [
        ("rows", f"{store.rows:,}"),
        ("shards", f"{finished.sum():,} of {len(finished):,} are finished, {store.layout.shard_rows:,} rows each"),
        ("dtype", str(store.dtype).removeprefix("torch.")),
        ("fingerprint", store.fingerprint),
    ]
    facts = [(name, _short(json.dumps(fact, ensure_ascii=False))) for name, fact in store.facts.items()]
    labels = [(name, f"{len(names):,}", _short(", ".join(names))) for name, names in store.labels.items()]
    parts = [
        f"store {store.path}",
        table(["", ""], sizes),
        table(["site", "width", "mean norm", "total variance"], list(_sites(store, bool(finished.any())))),
        table(["labels", "count", "names"], labels),
        table(["array", "shape", "type"], list(_arrays(store))),
        table(["source", ""], facts),
    ]
    return "\n\n".join(part for part in parts if part)


def _sites(store: Store, any_finished: bool) -> Iterator[tuple[str, ...]]:
    for site, width in store.widths.items():
        if any_finished:
            found = store.statistics(site)
            yield site, str(width), f"{found.mean_norm:.4g}", f"{found.variance.sum():.4g}"
        else:
            yield site, str(width), "-", "-"


def _arrays(store: Store) -> Iterator[tuple[str, ...]]:
    """What there is beside the activations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)  # of the lock file, which is no array
        members = sorted(store.group.members(max_depth=None))
    for path, member in members:
        if isinstance(member, zarr.Array) and not path.startswith(("sites/", "statistics/")):
            yield path, " × ".join(f"{size:,}" for size in member.shape), str(member.dtype)


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they must be; empty where there are no rows."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (titles, *rows)]
    return "\n".join(line.rstrip() for line in lines if line.strip()) if rows else ""


def _short(text: str) -> str:
    return text if len(text) <= SHORT else text[: SHORT - 1] + "…"
