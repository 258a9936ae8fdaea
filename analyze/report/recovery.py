"""What dictionaries recover of the bench, as the pages show it: seeds together, with and without anchors in pairs."""

import csv
import json
import pathlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from harvest.errors import UserError
from harvest.files import read_json

TEXTS = ("dictionary", "kind", "method", "anchored")
"""Columns of recovery.csv that are no numbers."""
BESIDE = ("decoder_recovery", "precision", "recall")
"""Figures that the pages show and only recovery.json has."""
THRESHOLD = 0.95
"""τ, as in `analyze.recovery`, which takes seconds to import."""
L0_TOLERANCE = 0.1
"""The l0 reached is marked where it is further from its target, as a share of it."""
METHODS = {"relu": "ReLU", "jumprelu": "JumpReLU", "topk": "TopK", "batchtopk": "BatchTopK", "gated": "Gated"}
SEED = re.compile(r"-seed\d+(?=-|$)")


@dataclass(frozen=True)
class Spread:
    """A figure over the seeds that have it."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Group:
    """Dictionaries that are equal but for the seed; most often one."""

    name: str
    """Without the seed, where there are several."""
    members: list[dict[str, Any]]

    @property
    def size(self) -> int:
        return len(self.members)

    @property
    def several(self) -> bool:
        return self.size > 1

    @property
    def left_out(self) -> int:
        """Features that were anchors."""
        return int(self.members[0]["recovery"]["left_out"])

    @property
    def evaluated(self) -> str:
        """How many features figures are over: those that were no anchors."""
        features = self.members[0]["recovery"]["features"]
        return f"{features - self.left_out:,} of {features:,}"

    def spread(self, figure: str) -> Spread | None:
        """None where it does not apply, as absorption without a hierarchy."""
        values = [value for d in self.members if (value := d["recovery"]["figures"][figure]) is not None]
        return Spread(sum(values) / len(values), min(values), max(values)) if values else None

    @property
    def missed_l0(self) -> float | None:
        """How far the l0 reached is from its target, as a share of it: the seed furthest off, None if that is near."""
        reached = [f for d in self.members if (f := d["recovery"]["figures"])["target_l0"]]
        furthest: float = max((f["l0"] / f["target_l0"] - 1 for f in reached), key=abs, default=0.0)
        return furthest if abs(furthest) > L0_TOLERANCE else None

    def curve(self, score: str) -> list[float]:
        """Figure 6's shares at each threshold, the mean over seeds."""
        mean: list[float] = np.mean([d["recovery"]["curves"][score] for d in self.members], axis=0).tolist()
        return mean


@dataclass(frozen=True)
class Pair:
    """The same dictionary without and with anchors; one of them may be missing."""

    without: Group | None
    anchored: Group | None

    @property
    def groups(self) -> list[Group]:
        return [group for group in (self.without, self.anchored) if group]

    @property
    def one(self) -> dict[str, Any]:
        """A dictionary of the pair, for what all of them have in common."""
        first: dict[str, Any] = self.groups[0].members[0]
        return first

    @property
    def method(self) -> str:
        return method_name(self.one["recovery"]["kind"], self.one["recovery"]["method"])

    def spread(self, anchored: bool, figure: str) -> Spread | None:
        group = self.anchored if anchored else self.without
        return group.spread(figure) if group else None


def method_name(kind: str, method: str) -> str:
    """`sae, matryoshka-topk` -> `Matryoshka TopK`; `transcoder, topk` -> `Transcoder, TopK`."""
    *nested, sigma = method.split("-", 1) if method.startswith("matryoshka-") else [method]
    name = " ".join([*(part.capitalize() for part in nested), METHODS.get(sigma, sigma)])
    return name if kind == "sae" else f"{kind.capitalize()}, {name}"


def read_table(path: pathlib.Path) -> dict[str, dict[str, str]]:
    """Dictionary -> its line of recovery.csv."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {line["dictionary"]: line for line in csv.DictReader(file)}
    except (OSError, KeyError) as error:
        raise UserError(f"measurement {path}: cannot be read ({error})") from None


def read_recovery(line: dict[str, str], measured: pathlib.Path) -> dict[str, Any]:
    """A line's texts; `figures`: its numbers and `BESIDE`, None where one does not apply; what else recovery.json has
    that the pages show; and `arrays` over features. Raises `UserError` where a measurement cannot be read.
    """
    found = read_json(measured / "recovery.json", "measurement")
    try:
        arrays = load_file(measured / "recovery.safetensors")
    except OSError as error:
        raise UserError(f"measurement {measured / 'recovery.safetensors'}: cannot be read ({error})") from None
    numbers = {name: float(cell) if cell else None for name, cell in line.items() if name not in TEXTS}
    return {
        **{name: line[name] for name in TEXTS},
        "figures": {**numbers, **{name: found[name] for name in BESIDE}},
        "curves": found["curves"],
        "thresholds": found["thresholds"],
        **{"features": found["features"], "left_out": found["anchored"]},
        "arrays": arrays,
    }


def matches(recovery: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Latent -> the `feature` that is matched to it, whether that was an anchor, and how well the two agree."""
    arrays = recovery["arrays"]
    return {
        int(latent): {
            "feature": feature,
            "anchored": bool(arrays["anchored"][feature]),
            "cosine": float(arrays["matched_cosine"][feature]),
            **{name: _number(arrays[name][feature]) for name in ("precision", "recall", "firing_f1")},
        }
        for feature, latent in enumerate(arrays["matched_latent"])
        if latent >= 0
    }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def groups_of(dictionaries: Iterable[dict[str, Any]]) -> list[Group]:
    """Seeds together: names that end in -seed0, -seed1, … with equal specs and stores."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for dictionary in dictionaries:
        found.setdefault((SEED.sub("", dictionary["name"]), setting_but("seed", of=dictionary)), []).append(dictionary)
    return [Group(name if len(d) > 1 else d[0]["name"], d) for (name, _), d in found.items()]


def pairs_of(groups: Iterable[Group]) -> list[Pair]:
    """Dictionaries that are equal but for anchors, in the order they are shown in; each anchored one has a pair."""
    found: dict[str, tuple[list[Group], list[Group]]] = {}
    for group in groups:
        anchored = group.members[0]["training"]["spec"]["anchors"] is not None
        found.setdefault(setting_but("seed", "anchors", of=group.members[0]), ([], []))[anchored].append(group)
    pairs = []
    for without, anchored_ones in found.values():
        pairs += [Pair(without[0] if without else None, group) for group in anchored_ones]
        pairs += [Pair(group, None) for group in (without[1:] if anchored_ones else without)]
    return pairs


def setting_but(*keys: str, of: dict[str, Any]) -> str:
    """What a dictionary was trained on and as, but for some keys of its spec."""
    spec = {key: value for key, value in of["training"]["spec"].items() if key not in keys}
    return json.dumps([of["training"]["store"], spec], sort_keys=True)
