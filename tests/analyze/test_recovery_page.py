"""The pages of a bench report: every figure as it was measured, none without a truth."""

import csv
import importlib.resources
import json
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from analyze.activity import measure
from analyze.recovery import measure_recovery, recovery_row, write_recovery_csv
from analyze.report.build import build
from analyze.report.formats import decimal, number, share
from analyze.theory.page import theory_page
from harvest.bench.config import BenchSpec, HierarchySpec
from harvest.bench.source import BenchSource
from harvest.errors import UserError
from harvest.files import write_json
from harvest.run import harvest
from harvest.store import Store
from tests.analyze.test_report import Page
from train.anchors import make_anchors
from train.config import DictionarySpec
from train.loop import train
from train.run import Job

HOSTILE = "<img src=x onerror=alert(1)>&\"'%23"
FREE = {"latents": 24, "tokens": 2000, "batch": 250, "reads": ["p"], "sparsity": {"topk": {"l0": 2}}}
ANCHORED = {**FREE, "anchors": {"source": "truth", "count": 3}}
CODER = {**FREE, "writes": ["r"]}
SPECS: dict[str, dict[str, Any]] = {
    "topk-seed0": FREE,
    "topk-seed1": {**FREE, "seed": 1},
    "topk-anchored-seed0": ANCHORED,
    "topk-anchored-seed1": {**ANCHORED, "seed": 1},
    "relu": {**FREE, "sparsity": {"relu": {"l0": 2}}},
    HOSTILE: CODER,
}
PERCENT = ("polysemantic", "dead", "absorption")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A bench with two families, dictionaries trained on it for a moment, their measurements, and the report."""
    folder = tmp_path_factory.mktemp("results")
    families = HierarchySpec(parents=3, children=2)
    spec = BenchSpec(features=12, sites={"p": 8, "r": 9}, rows=1000, sparsity=0.8, interference=0.4, hierarchy=families)
    path = folder / "harvest" / "<b>bench" / "activations.zarr"
    path.parent.mkdir(parents=True)
    harvest(BenchSource(spec), path, path.with_name("activations.manifest.json"), {})
    rows = []
    for name, values in SPECS.items():
        wanted = DictionarySpec.model_validate(values)
        trained, measured, anchors = folder / "train" / name, folder / "analyze" / name, None
        if wanted.anchors is not None:
            anchors = folder / f"{name}.safetensors"
            make_anchors(wanted, Store(path), anchors)
        train([Job(wanted, trained, folder / "checkpoints", anchors)], path)
        measure(trained, path, measured)
        measure_recovery(trained, path, anchors, measured)
        rows.append(recovery_row(name, trained, measured))
    write_recovery_csv(rows, folder / "recovery.csv")
    theory = theory_page()
    theory["theorem_3_1"]["statement"] += HOSTILE
    write_json(folder / "theory.json", theory)
    build_report(folder, folder / "report")
    return folder


def build_report(folder: pathlib.Path, output: pathlib.Path, truth: bool = True) -> None:
    dictionaries = [(name, folder / "analyze" / name, folder / "train" / name) for name in SPECS]
    files = (folder / "recovery.csv", folder / "theory.json") if truth else None
    build("<i>bench", dictionaries, sorted(folder.glob("harvest/*/activations.manifest.json")), output, files)


def lines(results: pathlib.Path) -> dict[str, dict[str, str]]:
    with (results / "recovery.csv").open() as file:
        return {line["dictionary"]: line for line in csv.DictReader(file)}


def recovery(results: pathlib.Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((results / "analyze" / name / "recovery.json").read_text())
    return found


def figures(results: pathlib.Path, name: str) -> dict[str, float]:
    """Everything that the page shows of a dictionary, from the files."""
    line, found = lines(results)[name], recovery(results, name)
    columns = ("m_gt", "m_ip", "encoder_cosine", "decoder_cosine", "mcc", "firing_f1", "explained_variance", "l0")
    of_line = {column: float(line[column]) for column in (*columns, "dead", "polysemantic", "absorption", "target_l0")}
    return of_line | {key: found[key] for key in ("decoder_recovery", "precision", "recall")}


class Tables(Page):
    """Also the cells of every table, by row: (text, data-value)."""

    def __init__(self, path: pathlib.Path) -> None:
        self.rows: list[list[tuple[str, str | None]]] = []
        self.open = False
        super().__init__(path)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        super().handle_starttag(tag, attrs)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.open = True
            self.rows[-1].append(("", dict(attrs).get("data-value")))

    def handle_endtag(self, tag: str) -> None:
        super().handle_endtag(tag)
        if tag in ("td", "th"):
            self.open = False

    def handle_data(self, data: str) -> None:
        super().handle_data(data)
        if self.open:
            text, value = self.rows[-1][-1]
            self.rows[-1][-1] = (text + data, value)

    def of(self, text: str) -> list[list[tuple[str, str | None]]]:
        """Rows by the text of their first cell, in the tables of pairs."""
        return [row for row in self.rows if row and row[0][0] == text and row[0][1] is not None]


TABLES = (
    ("m_gt", "m_ip", "encoder_cosine", "decoder_cosine", "mcc", "decoder_recovery"),
    ("precision", "recall", "firing_f1", "polysemantic", "absorption"),
    ("explained_variance", "dead", "l0"),
)
SEEDS = "topk seed 0, seed 1" + "topk-anchored seed 0, seed 1"
"""Two lines of one cell."""


def written(key: str, value: float) -> str:
    form = share if key in PERCENT else number if key in ("l0", "target_l0") else decimal
    return form(value)


def test_pairs_have_the_mean_and_the_spread_of_their_seeds(results: pathlib.Path) -> None:
    page = Tables(results / "report" / "recovery.html")
    free, anchored = ([figures(results, f"{name}-seed{s}") for s in (0, 1)] for name in ("topk", "topk-anchored"))
    for row, keys in zip(page.of(SEEDS), TABLES, strict=True):
        assert row[1][0] == "TopK"
        cells = iter(row[2:])
        for key in keys:
            for both in (free, anchored):
                values = [seed[key] for seed in both]
                text, value = next(cells)
                assert float(value or "nan") == pytest.approx(sum(values) / 2, rel=1e-12), key
                assert text.startswith(written(key, sum(values) / 2)), key
                if values[0] != values[1]:
                    assert f"{written(key, min(values))} – {written(key, max(values))}" in text, key
        assert [value for _, value in cells] == (["2.0"] if keys == TABLES[2] else [])


def test_a_dictionary_without_a_partner_stands_alone(results: pathlib.Path) -> None:
    page = Tables(results / "report" / "recovery.html")
    for row, keys in zip(page.of("relu"), TABLES, strict=True):
        wanted = figures(results, "relu")
        for place, key in enumerate(keys):
            assert float(row[2 + 2 * place][1] or "nan") == wanted[key]
            assert row[3 + 2 * place] == (decimal(None), "")


def test_every_seed_has_its_line(results: pathlib.Path) -> None:
    page = Tables(results / "report" / "recovery.html")
    order = (*TABLES[0], *TABLES[1], *TABLES[2], "target_l0")
    for name in SPECS:
        (row,) = [row for row in page.rows if row and row[0][0] == name and len(row) == 1 + len(order)]
        wanted = figures(results, name)
        assert [float(value or "nan") for _, value in row[1:]] == [wanted[key] for key in order]
        assert [text for text, _ in row[1:]] == [written(key, wanted[key]) for key in order]
    assert (results / "report" / "recovery.csv").read_bytes() == (results / "recovery.csv").read_bytes()


def test_an_l0_off_its_target_is_marked(results: pathlib.Path) -> None:
    page = Tables(results / "report" / "recovery.html")
    off = figures(results, "relu")["l0"] / 2 - 1
    assert abs(off) > 0.1, "the fixture's few steps do not reach the target; the test needs one that is off"
    l0 = page.of("relu")[2][6]
    assert l0[0].endswith(f"{100 * off:+.0f} %")
    assert page.of(SEEDS)[2][6][0].strip() == "2", "TopK reaches its l0"


def test_what_was_left_out_is_said(results: pathlib.Path) -> None:
    assert "Anchored features are left out of the evaluation" in Page(results / "report" / "recovery.html").text
    assert "9 of 12 in the columns “anchored”" in Page(results / "report" / "recovery.html").text


def test_every_header_is_defined_with_its_source(results: pathlib.Path) -> None:
    tags = Page(results / "report" / "recovery.html").tags
    groups = [found for tag, found in tags if tag == "th" and found.get("scope") == "colgroup" and "title" in found]
    assert len(groups) == sum(map(len, TABLES))
    buttons = [found["title"] or "" for tag, found in tags if tag == "button"]
    sources = ("section", "eq.", "theorem", "definition", "Kuhn", "Opens")
    assert all(any(source in title for source in sources) for title in buttons), buttons
    assert {found["title"] for found in groups} <= set(buttons)


def charts(path: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(script) for script in Page(path).scripts if script.startswith("{")]


def test_figure_6_is_the_curves_measured(results: pathlib.Path) -> None:
    drawn = charts(results / "report" / "recovery.html")
    for score, chart in zip(("raw", "encoder_cosine", "decoder_cosine"), drawn, strict=False):
        by_name = {trace["name"]: trace for trace in chart["data"]}
        assert list(by_name) == ["topk", "topk-anchored", "relu", HOSTILE]
        measured = recovery(results, "relu")
        assert by_name["relu"]["x"] == measured["thresholds"]
        assert by_name["relu"]["y"] == measured["curves"][score]
        seeds = [recovery(results, f"topk-anchored-seed{s}")["curves"][score] for s in (0, 1)]
        np.testing.assert_allclose(by_name["topk-anchored"]["y"], np.mean(seeds, 0), rtol=1e-12)
        assert by_name["topk"]["meta"] == by_name["topk-anchored"]["meta"] != by_name["relu"]["meta"]


def test_figure_5_is_absorption_by_parent(results: pathlib.Path) -> None:
    chart = charts(results / "report" / "recovery.html")[3]
    by_name = {trace["name"]: trace for trace in chart["data"]}
    arrays = load_file(results / "analyze" / "relu" / "recovery.safetensors")
    assert by_name["relu"]["x"] == [0, 1, 2]
    assert by_name["relu"]["y"] == arrays["absorption"][:3].tolist()
    assert not any(np.isnan(y) for trace in chart["data"] for y in trace["y"])
    anchored = [load_file(results / "analyze" / f"topk-anchored-seed{s}" / "recovery.safetensors") for s in (0, 1)]
    wanted = [p for p in range(3) if not all(a["anchored"][p] for a in anchored)]
    assert by_name["topk-anchored"]["x"] == wanted


def test_theory_is_shown_as_measured(results: pathlib.Path) -> None:
    theory, page = json.loads((results / "theory.json").read_text()), Tables(results / "report" / "theory.html")
    for part in theory.values():
        assert part["statement"] in page.text
    values = {float(value) for row in page.rows for _, value in row if value is not None}
    one, three, four, six, eight = (theory[f"theorem_3_{i}"] for i in (1, 3, 4, 6, 8))
    two, example, crowded = theory["theorem_3_2"], theory["example_3_5"], eight["five_features_in_4_dimensions"]
    assert values >= {one["difference"], one["bound"], three["loss"], three["bound"], four["loss"], six["loss"]}
    assert values >= {two["least_gap_decoder"], two["least_gap_encoder"], two["gap_both"], example["gradient_norm"]}
    assert values >= {six["gradient_norm"], six["figure_4"]["loss"], crowded["realizable"], crowded["still_realizable"]}
    verdicts = {row[0][0]: row[-1][0] for row in page.rows[1:] if len(row) == 4}
    assert verdicts["|loss − approximate loss|"] == "yes"
    holds = crowded["realizable"] == crowded["still_realizable"]
    assert verdicts["five features in 4 dimensions: still realizable"] == ("yes" if holds else "no")
    assert len({row[0][0] for row in page.rows if len(row) == 4}) == len(verdicts)


def test_figures_4_and_9_are_drawn_from_theory(results: pathlib.Path) -> None:
    theory = json.loads((results / "theory.json").read_text())
    four, nine = charts(results / "report" / "theory.html")
    for trace, name in zip(four["data"], ("features", "encoder", "decoder"), strict=True):
        tips = [[x, y] for x, y in zip(trace["x"][1::3], trace["y"][1::3], strict=True)]
        assert tips == theory["theorem_3_4"][name]
        assert set(trace["x"][::3]) == {0}
    bench = theory["figure_9"]
    for d in range(4):
        line, points = nine["data"][2 * d : 2 * d + 2]
        assert [line[axis][1] for axis in "xyz"] == bench["features"][d]
        mine = [row for row, strongest in zip(bench["rows"], bench["strongest"], strict=True) if strongest == d]
        assert [list(place) for place in zip(*(points[axis] for axis in "xyz"), strict=True)] == mine


def test_figure_9_is_a_bench() -> None:
    """Rows with one feature on are multiples of it, and every row is within rounding of the cone of its features."""
    bench = theory_page(seed=3)["figure_9"]
    W = np.array(bench["features"]).T
    gram = W.T @ W
    np.testing.assert_allclose(np.diag(gram), 1, atol=1e-6)
    assert (gram - np.eye(4)).max() == pytest.approx(bench["interference"], abs=1e-6)
    assert bench["interference"] <= bench["limit"]
    rows, strongest = np.array(bench["rows"]), np.array(bench["strongest"])
    assert (np.abs(rows[strongest < 0]) == 0).all()
    assert (strongest < 0).mean() == pytest.approx(bench["sparsity"] ** 4, abs=0.08)
    alone = [np.abs(row - max(row @ W[:, d], 0) * W[:, d]).max() < 2e-3 for row, d in zip(rows, strongest, strict=True)]
    density = 1 - bench["sparsity"]
    assert np.mean(np.array(alone)[strongest >= 0]) == pytest.approx(
        4 * density * bench["sparsity"] ** 3 / (1 - bench["sparsity"] ** 4), abs=0.1
    )


def test_a_latent_is_shown_with_its_feature(results: pathlib.Path) -> None:
    name = "topk-anchored-seed0"
    page = Tables(results / "report" / "dictionaries" / f"{name}.html")
    arrays = load_file(results / "analyze" / name / "recovery.safetensors")
    shown = {row[0][1]: row for row in page.rows if len(row) == 10 and row[0][1]}
    for feature, latent in enumerate(arrays["matched_latent"]):
        row = shown[str(latent)]
        assert row[1][0] == f"feature {feature}" + " (anchor)" * bool(arrays["anchored"][feature])
        for cell, key in zip(row[2:6], ("matched_cosine", "firing_f1", "precision", "recall"), strict=True):
            assert float(cell[1] or "nan") == pytest.approx(float(arrays[key][feature]), nan_ok=True)
    assert set(shown) == {str(latent) for latent in arrays["matched_latent"]}
    assert "bdi" not in {tag for tag, _ in page.tags}


def test_hostile_names_are_text(results: pathlib.Path) -> None:
    paths = sorted((results / "report").rglob("*.html"))
    assert len(paths) == 3 + 2 * len(SPECS)
    for path in paths:
        page = Page(path)
        assert "img" not in {tag for tag, _ in page.tags}, path
        assert not {"b", "i"} & {tag for tag, _ in page.tags}, path
        assert not any(key.startswith("on") for _, found in page.tags for key in found), path
    recovered = Page(results / "report" / "recovery.html")
    assert HOSTILE in recovered.text
    assert HOSTILE in Page(results / "report" / "theory.html").text
    assert "dictionaries/%3Cimg%20src%3Dx%20onerror%3Dalert%281%29%3E%26%22%27%2523.html" in recovered.links


def test_no_pages_without_a_truth(results: pathlib.Path, tmp_path: pathlib.Path) -> None:
    build_report(results, tmp_path, truth=False)
    assert not {"recovery.html", "theory.html", "recovery.csv"} & {path.name for path in tmp_path.iterdir()}
    index = Page(tmp_path / "index.html")
    assert not any("recovery" in link or "theory" in link for link in index.links)
    assert "recovery.html" in Page(results / "report" / "index.html").links
    assert "theory.html" in Page(results / "report" / "index.html").links


def test_what_cannot_be_read_is_named(results: pathlib.Path, tmp_path: pathlib.Path) -> None:
    shutil.copytree(results, tmp_path / "results")
    (tmp_path / "results" / "analyze" / "relu" / "recovery.json").unlink()
    with pytest.raises(UserError, match=r"relu/recovery.json: cannot be read"):
        build_report(tmp_path / "results", tmp_path / "report")
    (tmp_path / "results" / "recovery.csv").unlink()
    with pytest.raises(UserError, match=r"recovery.csv: cannot be read"):
        build_report(tmp_path / "results", tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_a_store_that_no_harvest_made_is_named(results: pathlib.Path, tmp_path: pathlib.Path) -> None:
    files = (results / "recovery.csv", results / "theory.json")
    with pytest.raises(UserError, match="topk-seed0: was trained on a store that none of the harvests made"):
        build(
            "x",
            [("topk-seed0", results / "analyze/topk-seed0", results / "train/topk-seed0")],
            [],
            tmp_path / "r",
            files,
        )


def test_the_papers_tables_are_package_data() -> None:
    text = importlib.resources.files("analyze").joinpath("data/paper_tables.csv").read_text()
    assert text.startswith("table,setting,method,anchored,gt_recovery,max_inner_product")
