"""Rows of the paper's tables beside the dictionaries of their method and setting, and beside no others."""

import csv
import pathlib
from typing import Any

import pytest

from analyze.report.paper import Comparison, compare
from analyze.report.recovery import groups_of, method_name, pairs_of

TABLE = pathlib.Path(__file__).parents[2] / "analyze" / "data" / "paper_tables.csv"
BENCH = {"features": 1000, "sites": {"p": 768, "r": 768}, "sparsity": 0.99, "interference": 0.1, "rows": 100_000}
PLAIN = {"hierarchy": None, "correlation": None, "power_law": None}
ANCHORS = {"source": "truth", "count": 100, "names": None, "weight": 0.1}


def dictionary(
    name: str,
    method: str = "topk",
    kind: str = "sae",
    l0: float = 10,
    harvest: str = "bench",
    anchors: dict[str, Any] | None = None,
    **spec: Any,
) -> dict[str, Any]:
    """What the report knows of a dictionary, as far as the comparison looks at it."""
    reads = ["p", "r"] if kind == "crosscoder" else ["p"]
    full = {"latents": 16000, "seed": 0, "anchors": anchors, "method": [method, kind, l0], **spec}
    return {
        "name": name,
        "harvest": harvest,
        "training": {
            "store": harvest,
            "spec": full,
            "reads": reads,
            "writes": ["r"] if kind == "transcoder" else reads,
        },
        "recovery": {"kind": kind, "method": method, "figures": {"target_l0": l0}},
    }


def compared(dictionaries: list[dict[str, Any]], **benches: dict[str, Any]) -> Comparison:
    all_benches: dict[str, dict[str, Any]] = {"bench": {}, **benches}
    manifests = {name: {"source": {"bench": {**BENCH, **PLAIN, **bench}}} for name, bench in all_benches.items()}
    return compare(pairs_of(groups_of(dictionaries)), manifests)


def matched(comparison: Comparison) -> dict[tuple[str, str, str], list[list[str]]]:
    """(table, setting, method) -> the names of each pair beside it."""
    found: dict[tuple[str, str, str], list[list[str]]] = {}
    for lines in comparison.tables.values():
        for line in lines:
            if line.ours:
                key = (line.paper.table, line.paper.setting, line.paper.method)
                found.setdefault(key, []).append([group.name for group in line.ours.groups])
    return found


DEFAULT = "n=1000 n_p=768 n_q=16000 S=0.99 M=0.1"
METHODS = {
    "relu": ("relu", "sae"),
    "jumprelu": ("jumprelu", "sae"),
    "topk": ("topk", "sae"),
    "batchtopk": ("batchtopk", "sae"),
    "matryoshka": ("matryoshka-topk", "sae"),
    "transcoder": ("topk", "transcoder"),
    "crosscoder": ("topk", "crosscoder"),
}


def test_every_published_figure_is_there_once() -> None:
    ours = [
        dictionary(f"{method}{suffix}", *named, anchors=anchors)
        for method, named in METHODS.items()
        for suffix, anchors in (("", None), ("-anchored", ANCHORS))
    ]
    comparison = compared(ours)
    with TABLE.open() as file:
        rows = [row for row in csv.DictReader(file) if row["table"] in comparison.tables]
    shown = {
        (table, line.paper.setting, line.paper.method, "yes" if anchored else "no"): figures
        for table, lines in comparison.tables.items()
        for line in lines
        for anchored, figures in line.paper.figures.items()
    }
    assert set(comparison.tables) == {"1", "4", "6"}
    assert shown == {
        (row["table"], row["setting"], row["method"], row["anchored"]): (
            float(row["gt_recovery"]),
            float(row["max_inner_product"]),
        )
        for row in rows
    }
    assert comparison.same_setting
    for method in METHODS:
        assert matched(comparison)["1", DEFAULT, method] == [[method, f"{method}-anchored"]]


@pytest.mark.parametrize(
    ("bench", "l0", "table", "setting"),
    [
        ({"features": 800}, 8, "4", "n=800"),
        ({"features": 1400}, 14, "4", "n=1400"),
        ({"interference": 0.05}, 10, "5", "M=0.05"),
        ({"interference": 0.5}, 10, "5", "M=0.5"),
        ({"sparsity": 0.995}, 5, "6", "density=0.005"),
        ({"sparsity": 0.9}, 100, "6", "density=0.1"),
    ],
)
def test_a_varied_bench_is_found_in_its_table(bench: dict[str, Any], l0: float, table: str, setting: str) -> None:
    comparison = compared([dictionary("mine", "relu", l0=l0, harvest="varied")], varied=bench)
    assert matched(comparison) == {(table, setting, "relu"): [["mine"]]}
    assert list(comparison.tables) == [table]


def test_k_is_matched_where_it_is_stated() -> None:
    ours = [dictionary("k10"), dictionary("k32", l0=32), dictionary("k64", l0=64, anchors=ANCHORS)]
    found = matched(compared(ours))
    assert found["7", "k=32", "topk"] == [["k32"]]
    assert found["7", "k=64", "topk"] == [["k64"]]
    assert ("7", "k=128", "topk") not in found
    assert found["1", DEFAULT, "topk"] == [["k10"], ["k32"], ["k64"]]


@pytest.mark.parametrize(
    ("bench", "latents", "said"),
    [
        ({"features": 200, "sites": {"p": 128, "r": 128}}, 1024, "n=200 n_p=128 n_q=1,024"),
        ({"rows": 50_000}, 16000, "N=50,000"),
        ({"hierarchy": {"parents": 10, "children": 3}}, 16000, "hierarchy"),
        ({"power_law": 0.8}, 16000, "power law"),
    ],
)
def test_another_setting_is_said_to_be_one(bench: dict[str, Any], latents: int, said: str) -> None:
    comparison = compared([dictionary("mine", harvest="other", latents=latents)], other=bench)
    assert not comparison.same_setting
    assert list(comparison.tables) == ["1"]
    ((line,),) = comparison.tables.values()
    assert (line.paper.method, line.differs) == ("topk", said)


def test_sites_of_unequal_width_have_no_width() -> None:
    ours = [dictionary("mine", kind="transcoder", harvest="other")]
    ((line,),) = compared(ours, other={"sites": {"p": 768, "r": 512}}).tables.values()
    assert line.differs == "n_p=several"


@pytest.mark.parametrize("change", [{"count": 50}, {"source": "clusters"}])
def test_other_anchors_are_not_the_papers(change: dict[str, Any]) -> None:
    ours = [dictionary("topk"), dictionary("topk-other", anchors={**ANCHORS, **change})]
    assert matched(compared(ours))["1", DEFAULT, "topk"] == [["topk"]]
    assert not compared(ours[1:]).same_setting
    ours += [
        dictionary("topk-more", anchors={**ANCHORS, **change, "weight": 1}),
        dictionary("topk-as", anchors=ANCHORS),
    ]
    assert matched(compared(ours[:3]))["1", DEFAULT, "topk"] == [["topk"]]
    assert matched(compared(ours))["1", DEFAULT, "topk"] == [["topk", "topk-as"]]


def test_a_method_of_no_table_has_no_row() -> None:
    assert compared([dictionary("gated", "gated")]).tables == {}


def test_pairs_are_equal_but_for_anchors() -> None:
    ours = [
        dictionary("a-anchored-few", anchors={**ANCHORS, "count": 5}),
        dictionary("a-seed0"),
        dictionary("a-seed1", seed=1),
        dictionary("a-anchored", anchors=ANCHORS),
        dictionary("b", latents=8000),
        dictionary("b-anchored-elsewhere", latents=8000, harvest="other", anchors=ANCHORS),
        dictionary("alone-seed0", "relu"),
    ]
    pairs = pairs_of(groups_of(ours))
    named = [tuple(group and group.name for group in (pair.without, pair.anchored)) for pair in pairs]
    assert named == [
        ("a", "a-anchored-few"),
        ("a", "a-anchored"),
        ("b", None),
        (None, "b-anchored-elsewhere"),
        ("alone-seed0", None),
    ]
    assert [member["name"] for member in pairs[0].groups[0].members] == ["a-seed0", "a-seed1"]


def test_only_seeds_are_grouped() -> None:
    """Equal specs under names of their own stay apart, and so do equal names with other specs."""
    ours = [dictionary("a"), dictionary("twin", seed=1), dictionary("c-seed0"), dictionary("c-seed1", seed=1, l0=11)]
    assert [group.name for group in groups_of(ours)] == ["a", "twin", "c-seed0", "c-seed1"]


def test_methods_read_well() -> None:
    assert method_name("sae", "batchtopk") == "BatchTopK"
    assert method_name("sae", "matryoshka-topk") == "Matryoshka TopK"
    assert method_name("crosscoder", "topk") == "Crosscoder, TopK"
    assert method_name("transcoder", "mine") == "Transcoder, mine"
