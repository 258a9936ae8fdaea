"""Dictionaries from elsewhere in a config, in the measurements and in the report."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from analyze.activity import measure
from analyze.experiment import Experiment, load_experiment
from analyze.recovery import measure_recovery, recovery_row, write_recovery_csv
from analyze.report.build import build
from analyze.theory.page import theory_page
from harvest.bench.config import BenchSpec
from harvest.bench.source import BenchSource
from harvest.errors import UserError
from harvest.files import write_json
from harvest.run import harvest
from tests.analyze.test_report import Page
from tests.train.saelens_cases import FIXTURES
from train.config import DictionarySpec, LoadSpec
from train.elsewhere import load_elsewhere
from train.loop import train
from train.run import Job

BENCH = {"features": 20, "sites": {"p": 12, "r": 10}, "rows": 1000, "sparsity": 0.8, "interference": 0.5}
RESAMPLED = {
    **{"reads": ["p"], "latents": 24, "sparsity": {"topk": {"l0": 2}}, "tokens": 2000, "batch": 250},
    "resample": {"every": 500},
}
LOADED: dict[str, dict[str, Any]] = {
    "old": {"load": str(FIXTURES / "saelens-old/gated"), "reads": ["p"]},
    "new": {"load": str(FIXTURES / "saelens/jumprelu_transcoder"), "reads": ["p"], "writes": ["r"]},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bench, a dictionary that was trained on it and two from elsewhere, and all that is measured of them."""
    folder = tmp_path_factory.mktemp("results")
    store = folder / "harvest/bench/activations.zarr"
    store.parent.mkdir(parents=True)
    harvest(BenchSource(BenchSpec.model_validate(BENCH)), store, store.with_name("activations.manifest.json"), {})
    spec = DictionarySpec.model_validate(RESAMPLED)
    train([Job(spec, folder / "train/resampled", folder / "checkpoints")], store)
    for name, values in LOADED.items():
        load_elsewhere(LoadSpec.model_validate(values), store, folder / "train" / name)
    names = ["resampled", *LOADED]
    for name in names:
        measure(folder / "train" / name, store, folder / "analyze" / name)
        measure_recovery(folder / "train" / name, store, None, folder / "analyze" / name)
    rows = [recovery_row(name, folder / "train" / name, folder / "analyze" / name) for name in names]
    write_recovery_csv(rows, folder / "recovery.csv")
    write_json(folder / "theory.json", theory_page())
    report(folder, folder / "report", names)
    return folder


def report(folder: Path, output: Path, names: list[str], truth: bool = True) -> None:
    dictionaries = [(name, folder / "analyze" / name, folder / "train" / name) for name in names]
    files = (folder / "recovery.csv", folder / "theory.json") if truth else None
    build("loaded", dictionaries, sorted(folder.glob("harvest/*/*.manifest.json")), output, files)


def charts(page: Page) -> dict[str, list[dict[str, Any]]]:
    found = [json.loads(script) for script in page.scripts if script.startswith("{")]
    return {chart["layout"]["yaxis"]["title"]["text"]: chart["data"] for chart in found}


def test_every_page_is_there(results: Path) -> None:
    pages = {str(path.relative_to(results / "report")) for path in results.rglob("report/**/*.html")}
    dictionaries = {f"dictionaries/{name}.html" for name in ("resampled", *LOADED)}
    features = {f"features/{name}.html" for name in ("resampled", *LOADED)}
    assert pages == dictionaries | features | {"index.html", "recovery.html", "resampling.html", "theory.html"}
    assert all(f"dictionaries/{name}.html" in Page(results / "report/recovery.html").links for name in LOADED)


def test_there_was_no_training(results: Path) -> None:
    index = Page(results / "report/index.html")
    assert [trace["name"] for trace in charts(index)["variance unexplained (share)"]] == ["resampled"]
    assert len(charts(index)["latents in a quarter decade"]) == 3
    for name in LOADED:
        summary = json.loads((results / f"analyze/{name}/summary.json").read_text())
        assert (summary["whole"]["rows"], summary["held_out"]) == (1000, None)
        whole = summary["whole"]
        shown = ["", *(whole[key] for key in ("explained_variance", "l0")), "", whole["dead_share"], 40, "", ""]
        row = list(map(str, shown))  # held out, whole, l0, target, dead, latents, trained on, time
        at = index.values.index(str(whole["explained_variance"])) - 1
        assert index.values[at : at + len(row)] == row
        page = Page(results / f"report/dictionaries/{name}.html")
        assert "From elsewhere" in page.text
        assert LOADED[name]["load"] in page.text
        assert "peak memory" not in page.text


def test_a_report_of_nothing_that_was_trained(results: Path, tmp_path: Path) -> None:
    report(results, tmp_path, list(LOADED), truth=False)
    assert list(charts(Page(tmp_path / "index.html"))) == ["latents in a quarter decade"]
    assert not (tmp_path / "resampling.html").exists()


def test_recovery_has_no_seed_and_no_target(results: Path) -> None:
    with (results / "recovery.csv").open() as file:
        lines = {line["dictionary"]: line for line in csv.DictReader(file)}
    assert (lines["resampled"]["seed"], lines["resampled"]["target_l0"]) == ("0", "2")
    for name, method, kind in (("old", "gated", "sae"), ("new", "jumprelu", "transcoder")):
        line = lines[name]
        assert (line["seed"], line["target_l0"], line["anchored"]) == ("", "", "no")
        assert (line["method"], line["kind"]) == (method, kind)
        assert float(line["decoder_cosine"]) > 0


def experiment(dictionary: dict[str, Any], **more: Any) -> Experiment:
    trained = {"harvest": "bench", "reads": ["p"], "latents": 64, "sparsity": {"topk": {"l0": 2}}, "tokens": 8000}
    values = {"harvests": {"bench": {"bench": BENCH}}, "dictionaries": {"a": trained, "b": dictionary}, **more}
    return load_experiment(values, "configs/mine.yaml")


def test_a_config_may_load_in_place_of_training(tmp_path: Path) -> None:
    for name in ("cfg.json", "sae_weights.safetensors", "sae.pt"):
        (tmp_path / name).touch()
    found = experiment({"harvest": "bench", "load": str(tmp_path), "reads": ["p"], "writes": ["r"]})
    assert (list(found.trained), list(found.loaded), found.trained_alone, found.anchored) == (["a"], ["b"], ["a"], [])
    assert found.with_truth == ["a", "b"]
    assert found.dictionaries["b"].kind == "transcoder"
    spec = LoadSpec.model_validate_json(found.dictionary_text("b"))
    assert spec == LoadSpec(load=str(tmp_path), reads=["p"], writes=["r"])
    assert found.loaded_files("b") == [str(tmp_path / "cfg.json"), str(tmp_path / "sae_weights.safetensors")]
    assert experiment({"harvest": "bench", "load": "owner/name/at", "reads": ["p"]}).loaded_files("b") == []


def test_what_varies_is_training() -> None:
    found = experiment({"harvest": "bench", "load": "owner/name", "reads": ["p"]}, vary={"seed": [0, 1]})
    assert list(found.dictionaries) == ["a-seed0", "a-seed1", "b"]
    own = {"harvest": "bench", "reads": ["p"], "vary": {"load": {"small": "owner/small", "large": "owner/large"}}}
    assert list(experiment(own, vary={"seed": [0, 1]}).loaded) == ["b-small", "b-large"]


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"tokens": "1M"}, "^dictionaries.b: .*: tokens: for training, and this is loaded; give load, reads and"),
        ({"latents": 3, "sparsity": {}, "anchors": None}, "^dictionaries.b: .*: latents, sparsity, anchors: for train"),
        ({"together": "pass"}, "^dictionaries.b.together: unknown key; there are reads, writes, load, harvest"),
        ({"load": 3}, "^dictionaries.b.load: 3: Input should be a valid string"),
        ({"reads": None}, "^dictionaries.b.reads: null: Input should be a valid list"),
        ({"harvest": "dogs"}, "dictionaries.b.harvest: dogs: no such name; there are bench"),
        ({"reads": ["bench/p"]}, "dictionaries.b: bench/p: a site of bench is written <site>"),
    ],
)
def test_mistakes_in_a_dictionary_that_is_loaded(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        experiment({"harvest": "bench", "load": "owner/name", "reads": ["p"], **keys})
    assert "\n" not in str(caught.value)
