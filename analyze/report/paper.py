"""The paper's figures beside ours: rows of Tables 1 and 4 to 7 of arXiv 2512.05534 matched to dictionaries."""

import csv
import importlib.resources
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from analyze.report.recovery import METHODS, Group, Pair

Setting = Mapping[str, float | None]

OF_THE_BENCH = ("1", "4", "5", "6", "7")
"""Tables of paper_tables.csv; Table 2 is about CLIP."""
VARIED = {"4": "the number of features", "5": "interference", "6": "density", "7": "the latents kept, k"}
BEYOND = ("hierarchy", "correlation", "power_law")
"""What a bench may have and the paper's has not."""
ANCHORS = 100
"""The paper's anchors: a random subset of ground-truth features (section 5.1)."""
ROWS = 100_000
"""The paper's samples, N of its Table 3; no row of a table states them."""


@dataclass(frozen=True)
class Published:
    """A method in a setting, without and with anchors; M_GT and M_IP of either."""

    table: str
    setting: str
    """As the table states it."""
    method: str
    figures: dict[bool, tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """A published line beside a pair of ours; `ours` is None where no dictionary of the experiment matches."""

    paper: Published
    ours: Pair | None
    differs: str
    """What of our setting is not the paper's; empty where nothing is."""


@dataclass(frozen=True)
class Comparison:
    tables: dict[str, list[Line]]
    same_setting: bool
    """Whether the lines match in setting; if not, this is Table 1 beside dictionaries of the same methods only."""


def compare(pairs: list[Pair], harvests: Mapping[str, Mapping[str, Any]]) -> Comparison:
    """Every table that has a line in the setting of a pair; where there is none, Table 1 in another setting.

    `harvests`: name -> manifest. A pair with other anchors than the paper's stands in its line without them.
    """
    published = _published()
    default = _stated(next(line.setting for line in published if line.table == "1"))
    settings = [_setting(pair, harvests) for pair in pairs]
    tables: dict[str, list[Line]] = {}
    for line in published:
        wanted = {**default, "N": ROWS, **dict.fromkeys(BEYOND), **_stated(line.setting)}
        ours = [
            kept
            for pair, setting in zip(pairs, settings, strict=True)
            if _is_method(pair, line.method)
            and not _differing(setting, wanted)
            and (kept := _with_the_papers_anchors(pair))
        ]
        beside = [Line(line, pair, "") for pair in _distinct(ours)] or [Line(line, None, "")]
        tables.setdefault(line.table, []).extend(beside)
    shown = {table: lines for table, lines in tables.items() if any(line.ours for line in lines)}
    if shown:
        return Comparison(shown, same_setting=True)
    wanted = {**default, "N": ROWS, **dict.fromkeys(BEYOND)}
    lines = [
        Line(line, pair, _differing(setting, wanted))
        for line in published
        if line.table == "1"
        for pair, setting in zip(pairs, settings, strict=True)
        if _is_method(pair, line.method)
    ]
    return Comparison({"1": lines} if lines else {}, same_setting=False)


def papers_name(method: str) -> str:
    """A method of the paper's tables as a reader knows it."""
    return METHODS.get(method, method.capitalize())


def _published(tables: Collection[str] = OF_THE_BENCH) -> list[Published]:
    text = importlib.resources.files("analyze").joinpath("data/paper_tables.csv").read_text(encoding="utf-8")
    found: dict[tuple[str, str, str], dict[bool, tuple[float, float]]] = {}
    for row in csv.DictReader(text.splitlines()):
        if row["table"] in tables:
            figures = found.setdefault((row["table"], row["setting"], row["method"]), {})
            figures[row["anchored"] == "yes"] = (float(row["gt_recovery"]), float(row["max_inner_product"]))
    return [Published(*key, figures) for key, figures in found.items()]


def class_means_of_clip() -> list[Published]:
    """Table 2: recovery of class means by dictionaries of CLIP's image embeddings."""
    return _published(("2",))


def _stated(setting: str) -> dict[str, float]:
    """`n=800` -> {"n": 800.0}. Table 6's density is 1 - S."""
    numbers = {name: float(value) for name, value in (part.split("=") for part in setting.split())}
    return {"S": 1 - numbers["density"]} if "density" in numbers else numbers


def _setting(pair: Pair, harvests: Mapping[str, Mapping[str, Any]]) -> Setting:
    """A pair's setting in the paper's letters. Sites of unequal width have no n_p; k is the target l0, or
    of what was loaded the l0 measured."""
    training, figures = pair.one["training"], pair.one["recovery"]["figures"]
    bench: dict[str, Any] = harvests[pair.one["harvest"]]["source"]["bench"]
    widths = {bench["sites"][site] for site in (*training["reads"], *training["writes"])}
    return {
        "n": bench["features"],
        "n_p": widths.pop() if len(widths) == 1 else None,
        "n_q": training["spec"]["latents"],
        "S": bench["sparsity"],
        "M": bench["interference"],
        "k": figures["target_l0"] or figures["l0"],
        "N": bench["rows"],
        **{name: bench[name] and 1 for name in BEYOND},
    }


def _differing(setting: Setting, wanted: Setting) -> str:
    """What of a setting is not as wanted: `n=200 n_p=128`."""
    return " ".join(
        name.replace("_law", " law") if name in BEYOND else f"{name}={_short(setting[name])}"
        for name, value in wanted.items()
        if not _equal(setting[name], value)
    )


def _equal(ours: float | None, theirs: float | None) -> bool:
    return ours == theirs or (ours is not None and theirs is not None and abs(ours - theirs) < 1e-9 * abs(theirs))


def _short(value: float | None) -> str:
    return "several" if value is None else f"{value:,.10g}"


def _is_method(pair: Pair, method: str) -> bool:
    """The paper names a transcoder and a crosscoder without a σ, and Matryoshka without what it nests."""
    kind, ours = pair.one["recovery"]["kind"], pair.one["recovery"]["method"]
    if kind != "sae":
        return bool(kind == method)
    return bool(ours == method or (method == "matryoshka" and ours.startswith("matryoshka-")))


def _with_the_papers_anchors(pair: Pair) -> Pair | None:
    anchored = pair.anchored if pair.anchored and _anchored_as_the_paper(pair.anchored) else None
    return Pair(pair.without, anchored) if pair.without or anchored else None


def _distinct(pairs: list[Pair]) -> list[Pair]:
    """Each dictionary without anchors once: by itself only where no pair has it."""
    paired = {pair.without.name for pair in pairs if pair.without and pair.anchored}
    alone = {pair.without.name: pair for pair in pairs if pair.without and not pair.anchored}
    return [
        pair
        for pair in pairs
        if pair.anchored or (pair.without and pair.without.name not in paired and alone[pair.without.name] is pair)
    ]


def _anchored_as_the_paper(group: Group) -> bool:
    anchors = group.members[0]["training"]["spec"]["anchors"]
    return bool(anchors["source"] == "truth" and anchors["count"] == ANCHORS)
