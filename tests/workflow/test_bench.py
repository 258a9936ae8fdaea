"""The bench's pipeline, configs/bench-small.yaml in its tiniest form: from rows to the recovery report."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.workflow.conftest import REPOSITORY, run

METHODS = ("relu", "jumprelu", "topk", "batchtopk", "matryoshka", "transcoder", "crosscoder")
NAMES = [f"{method}{anchored}" for method in METHODS for anchored in ("", "-anchored")]
SIZES = {"latents": 64, "tokens": 20_000, "batch": 500}
BENCH = {"features": 20, "sites": {"p": 16, "r": 16}, "rows": 4000, "sparsity": 0.9, "interference": 0.3}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every method was trained, without and with 2 anchors, on 20 features in 16 dimensions."""
    folder = tmp_path_factory.mktemp("bench")
    config: dict[str, Any] = yaml.safe_load((REPOSITORY / "configs/bench-small.yaml").read_text())
    config["harvests"]["bench"]["bench"] = BENCH
    for name, spec in config["dictionaries"].items():
        for method in spec["sparsity"].values():
            method["l0"] = 2
        # All but one of the methods go over the store together.
        spec |= SIZES if name == "transcoder" else {**SIZES, "together": "pass"}
        spec["vary"]["anchors"]["anchored"]["count"] = 2
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    results = folder / "results/tiny"
    # All that the report needs; where something was not measured, as the geometry of all these, it is not there.
    done = run(folder, *(str(results.relative_to(folder) / name) for name in ("recovery.csv", "theory.json")))
    assert done.returncode == 0, done.stderr[-3000:]
    command = [sys.executable, "-m", "analyze", "report", "tiny", *NAMES]
    done = subprocess.run(
        [*command, "--results", results, "--output", results / "report"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return results


def test_every_method_without_and_with_anchors(finished: Path) -> None:
    with (finished / "recovery.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["dictionary"] for line in lines] == NAMES
    assert [line["anchored"] for line in lines] == ["no", "yes"] * len(METHODS)
    assert [line["kind"] for line in lines[::2]] == ["sae"] * 5 + ["transcoder", "crosscoder"]
    for line in lines:
        found = json.loads((finished / "analyze" / line["dictionary"] / "recovery.json").read_text())
        assert float(line["decoder_cosine"]) == pytest.approx(found["decoder_cosine"], rel=1e-5)
        assert found["anchored"] == (2 if line["anchored"] == "yes" else 0)
        assert found["features"] == BENCH["features"]


def test_the_report_has_its_pages(finished: Path) -> None:
    report = finished / "report"
    pages = {str(path.relative_to(report)) for path in report.rglob("*.html")}
    wanted = {f"{folder}/{name}.html" for folder in ("dictionaries", "features") for name in NAMES}
    assert pages >= wanted | {"index.html", "recovery.html", "theory.html"}
    assert (report / "recovery.csv").read_bytes() == (finished / "recovery.csv").read_bytes()
    recovery = (report / "recovery.html").read_text()
    assert all(f'"dictionaries/{name}.html"' in recovery for name in NAMES)
    assert "The settings differ" in recovery
