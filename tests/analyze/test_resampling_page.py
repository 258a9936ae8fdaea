"""The page that compares dictionaries without and with resampling: every figure as it was measured."""

import json
import pathlib
from typing import Any

import pytest

from analyze.activity import measure
from analyze.report.build import build
from analyze.report.formats import decimal, number, share
from harvest.errors import UserError
from tests.analyze.test_report import Page
from tests.synthetic import Synthetic, synthetic_store
from train.config import DictionarySpec
from train.loop import train
from train.run import Job

HOSTILE = "<img src=x onerror=alert(1)>"
PLAIN = {"reads": ["x"], "latents": 256, "sparsity": {"topk": {"l0": 2}}, "tokens": 12_800, "batch": 128}
OFTEN = {"every": 2_000, "window": 256}
SPECS: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "other-seed": {**PLAIN, "seed": 1},
    HOSTILE: {**PLAIN, "resample": OFTEN},
    "alone": {**PLAIN, "seed": 2, "resample": OFTEN},
    "never-dead": {**PLAIN, "seed": 1, "resample": {"every": 6_000, "window": 6_000}, "latents": 4},
}
KEYS = ("unexplained", "dead_share", "l0")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("results")
    store = synthetic_store(folder, Synthetic(rows=2_000))
    for name, values in SPECS.items():
        spec = DictionarySpec.model_validate(values)
        train([Job(spec, folder / "train" / name, folder / "checkpoints" / name)], store.path)
        measure(folder / "train" / name, store.path, folder / "analyze" / name)
    build_report(folder, "report", list(SPECS))
    return folder


def build_report(folder: pathlib.Path, report: str, names: list[str]) -> pathlib.Path:
    build("x", [(name, folder / "analyze" / name, folder / "train" / name) for name in names], [], folder / report)
    return folder / report / "resampling.html"


def lines(results: pathlib.Path, name: str, file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (results / f"train/{name}/{file}.jsonl").read_text().splitlines()]


def charts(page: Page) -> list[dict[str, Any]]:
    return [json.loads(script) for script in page.scripts if script.startswith("{")]


def test_curves_are_the_metrics_and_lines_the_events(results: pathlib.Path) -> None:
    drawn = charts(Page(results / "report/resampling.html"))
    assert len(drawn) == 3 * 3
    names = [["plain", HOSTILE], ["alone"], ["never-dead"]]
    for place, chart in enumerate(drawn):
        compared, key = names[place // 3], KEYS[place % 3]
        assert [trace["name"] for trace in chart["data"]] == compared
        for name, trace in zip(compared, chart["data"], strict=True):
            metrics = lines(results, name, "metrics")
            assert trace["x"] == [line["tokens"] for line in metrics]
            assert trace["y"] == [line[key] for line in metrics]
        events = lines(results, compared[-1], "resampling")
        assert [shape["x0"] for shape in chart["layout"]["shapes"]] == [event["tokens"] for event in events]
        assert all(chart["layout"][axis]["title"]["text"] for axis in ("xaxis", "yaxis"))
        y = chart["layout"]["yaxis"]
        assert y["type"] == ("log" if key == "unexplained" else "linear")
        values = [value for trace in chart["data"] for value in trace["y"]]
        assert key != "unexplained" or sum(min(values) <= tick <= max(values) for tick in y["tickvals"]) >= 2
    assert len(lines(results, HOSTILE, "resampling")) == 3, "2,000, 4,000 and 6,000 rows of 6,400"


def test_figures_are_those_measured(results: pathlib.Path) -> None:
    page = Page(results / "report/resampling.html")
    values = [float(value) for value in page.values]
    for name in ("plain", HOSTILE, "alone", "never-dead"):
        last = json.loads((results / f"train/{name}/training.json").read_text())["last"]
        summary = json.loads((results / f"analyze/{name}/summary.json").read_text())
        wanted = [last[key] for key in KEYS]
        wanted += [summary["held_out"]["explained_variance"], summary["whole"]["dead_share"]]
        assert any(values[at : at + 5] == wanted for at in range(len(values))), name
        assert decimal(last["unexplained"]) in page.text
        assert share(summary["whole"]["dead_share"]) in page.text
    for event in lines(results, HOSTILE, "resampling"):
        wanted = [event[key] for key in ("step", "tokens", "resampled", "inputs", "loss_before", "loss_after")]
        assert any(values[at : at + 6] == wanted for at in range(len(values))), event


def test_what_was_done_is_said(results: pathlib.Path) -> None:
    text = " ".join(Page(results / "report/resampling.html").text.split())
    resampled = sum(event["resampled"] for event in lines(results, HOSTILE, "resampling"))
    assert (
        f"{number(resampled)} latents were given a new direction in 3 resamplings, every 2,000 rows until 6,400; a "
        "latent counted as dead there if it had fired in none of the 256 rows before."
    ) in text
    assert lines(results, "never-dead", "resampling") == []
    assert "No latent was dead when it was time to resample, every 6,000 rows until 6,400" in text
    assert text.count("No dictionary of this experiment is equal but for resampling") == 2
    assert f"{HOSTILE} and plain" in text


def test_only_where_something_was_resampled(results: pathlib.Path) -> None:
    assert "resampling.html" in Page(results / "report/index.html").links
    page = build_report(results, "without", ["plain", "other-seed"])
    assert not page.exists()
    assert "resampling.html" not in Page(page.with_name("index.html")).links


def test_hostile_names_are_text(results: pathlib.Path) -> None:
    page = Page(results / "report/resampling.html")
    assert "img" not in {tag for tag, _ in page.tags}
    assert "dictionaries/%3Cimg%20src%3Dx%20onerror%3Dalert%281%29%3E.html" in page.links


def test_a_log_that_cannot_be_read_is_named(results: pathlib.Path) -> None:
    log = results / "train/alone/resampling.jsonl"
    kept = log.read_text()
    log.unlink()
    with pytest.raises(UserError, match=r"dictionary alone: .*resampling.jsonl"):
        build_report(results, "broken", ["alone"])
    log.write_text(kept)
