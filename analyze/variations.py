"""`vary`: one entry of a config that stands for several, as the ablations and the seeds of a study need."""

import copy
import itertools
from collections.abc import Iterator
from typing import Any

from harvest.errors import UserError


def spread_variations(values: dict[str, Any]) -> dict[str, Any]:
    """Replace entries that have `vary` by their variations; `vary` at the top varies all dictionaries
    that are trained.

    `vary: {seed: [0, 1]}` makes `<name>-seed0` and `<name>-seed1`; a value may have a name of its own, and an empty one
    adds nothing: `vary: {anchors: {"": null, anchored: {source: truth, count: 20}}}` makes `<name>` and
    `<name>-anchored`. A dotted key reaches inside: `vary: {bench.features: [800, 900]}`. Several keys multiply.
    """
    values = dict(values)
    common = values.pop("vary", {})
    for kind, everywhere in (("harvests", {}), ("dictionaries", common)):
        entries = values.get(kind)
        if isinstance(entries, dict):
            values[kind] = dict(
                variation
                for name, entry in entries.items()
                for variation in _variations(f"{kind}.{name}", str(name), entry, everywhere)
            )
    return values


def _variations(key: str, name: str, entry: Any, common: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(entry, dict):
        yield name, entry
        return
    entry = dict(entry)
    own = entry.pop("vary", {})
    # What all dictionaries vary in is how they are trained; one from elsewhere is what it is.
    axes = [_axis(key, *axis) for axis in (own if "load" in {**entry, **own} else {**own, **common}).items()]
    for choice in itertools.product(*axes):
        varied = copy.deepcopy(entry)
        for path, _, value in choice:
            _put(varied, path, value)
        yield "-".join([name, *(suffix for _, suffix, _ in choice if suffix)]), varied


def _axis(key: str, path: str, choices: Any) -> list[tuple[str, str, Any]]:
    """(path, suffix of the name, value) for each choice."""
    if isinstance(choices, dict):
        return [(path, str(name), value) for name, value in choices.items()]
    if isinstance(choices, list):
        last = path.split(".")[-1]
        return [(path, f"{last}{value}", value) for value in choices]
    raise UserError(f"{key}.vary.{path}: {choices!r} must be a list of values, or a mapping of names to values")


def _put(entry: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        entry = entry.setdefault(parent, {})
    entry[last] = value
