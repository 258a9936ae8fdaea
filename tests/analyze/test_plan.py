"""What an experiment is said to cost: against what it takes, and against the headers of the shipped configs."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from analyze.experiment import Experiment, load_experiment
from analyze.first_lines import first_lines
from analyze.footprints import Footprints
from analyze.hours import hours
from analyze.plan import Plan, plan_experiment, prepared_corpora
from harvest.errors import UserError
from harvest.rates import H100
from tests.tiny import tiny_clip, tiny_llama

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
ARCHITECTURES = {
    "openai-community/gpt2": "gpt2",
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "HuggingFaceTB/SmolLM2-135M": "smollm2-135m",
    "HuggingFaceTB/SmolLM2-135M-Instruct": "smollm2-135m",
    "openai/clip-vit-base-patch32": "clip-vit-b32",
}
"""Models of the shipped configs, and the files in tests/fixtures/architectures that have their shape."""
COUNTS = {"": 1, "k": 1e3, "M": 1e6}
BYTES = {"MB": 1e6, "GB": 1e9, "TB": 1e12}


@pytest.fixture(autouse=True)
def without_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def config_of(model: Path | str, **corpus: Any) -> dict[str, Any]:
    sites = ["layers.40%.resid_post", "layers.1.mlp_in"]
    dictionary = {"harvest": "docs", "latents": 48, "sparsity": {"topk": {"l0": 4}}, "tokens": 6000, "batch": 256}
    return {
        "models": {"tiny": {"id": str(model), "dtype": "float32"}},
        "corpora": {"docs": {"documentation": ["tqdm"], "tokens": 700, "context": 32, **corpus}},
        "harvests": {"docs": {"model": "tiny", "corpus": "docs", "sites": sites, "batch_tokens": 64}},
        "dictionaries": {
            "sae": {**dictionary, "reads": sites[:1]},
            "transcoder": {**dictionary, "reads": sites[1:], "writes": sites[:1]},
        },
    }


def plan_of(experiment: Experiment, results: Path = Path("/nowhere"), **architectures: Path) -> Plan:
    look = Footprints(experiment, architectures).look
    return plan_experiment(experiment, look, prepared_corpora(experiment, results))


class Said(NamedTuple):
    status: int
    out: str
    errors: list[str]


@pytest.fixture
def plan(capsys: pytest.CaptureFixture[str]) -> Any:
    """`python -m analyze plan`, which is what `python -m harvest plan` runs, in this process."""

    def run(*arguments: str | Path) -> Said:
        capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["analyze", "plan", *map(str, arguments)])
            with pytest.raises(SystemExit) as ended:
                runpy.run_module("analyze", run_name="__main__")
        captured = capsys.readouterr()
        return Said(int(ended.value.code or 0), captured.out, captured.err.splitlines())

    return run


def harvested(experiment: Experiment, results: Path, name: str) -> Path:
    """Prepare a harvest's corpus and make its store, as the workflow does."""
    folder = results / "harvest" / name
    model = experiment.model_text(experiment.model_of(name), None)
    corpus = ["--output", folder / "corpus.zarr", "--manifest", folder / "corpus.json"]
    _harvest("prepare", experiment.corpus_text(name), "--model", model, *corpus)
    store = folder / "activations.zarr"
    _harvest(
        "run", experiment.harvest_text(name), "--model", model, "--corpus", folder / "corpus.zarr", "--store", store
    )
    return store


def _harvest(*arguments: str | Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["harvest", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module("harvest", run_name="__main__")
    assert not ended.value.code


def bytes_in(*folders: Path) -> int:
    """Of all arrays there, without their zarr.json."""
    files = (file for folder in folders for file in folder.rglob("*") if file.is_file() and file.name != "zarr.json")
    return sum(file.stat().st_size for file in files)


def test_a_store_has_the_bytes_that_were_planned(tmp_path: Path) -> None:
    """Row metadata is compressed, and planned as it would be otherwise."""
    config = config_of(tiny_llama(tmp_path / "llama"))
    experiment = load_experiment(config, "configs/mine.yaml")
    before = plan_of(experiment).harvests["docs"]
    store = harvested(experiment, tmp_path, "docs")
    planned = plan_of(experiment, tmp_path).harvests["docs"]
    assert (planned.rows, planned.tokens) == (700, json.loads((store.parent / "corpus.json").read_text())["tokens"])
    assert planned.tokens > before.tokens == 700  # the beginning of a text is known once texts are
    columns = 700 * 4 * 4  # document, position, token, package
    assert planned.store_bytes == before.store_bytes == bytes_in(store / "sites", store / "statistics") + columns
    assert planned.sites.widths == {"layers.2.resid_post": 24, "layers.1.mlp_in": 24}
    assert bytes_in(store.parent / "corpus.zarr") < 2 * planned.corpus_bytes + 30_000  # and the vocabulary


def test_a_corpus_of_before_says_nothing(tmp_path: Path) -> None:
    config = config_of(tiny_llama(tmp_path / "llama"))
    experiment = load_experiment(config, "configs/mine.yaml")
    facts = {"spec": experiment.corpora["docs"].model_dump(mode="json"), "rows": 500, "tokens": 600}
    (tmp_path / "harvest/docs").mkdir(parents=True)
    (tmp_path / "harvest/docs/corpus.json").write_text(json.dumps(facts))
    assert plan_of(experiment, tmp_path).harvests["docs"].rows == 500  # it ended before its budget
    other = load_experiment(config_of(tmp_path / "llama", tokens=900), "configs/mine.yaml")
    assert plan_of(other, tmp_path).harvests["docs"].rows == 900


def test_images_and_texts(tmp_path: Path) -> None:
    model = {"id": str(tiny_clip(tmp_path / "clip")), "dtype": "float32"}
    dictionary = {"reads": ["layers.1.resid_post"], "latents": 48, "sparsity": {"topk": {"l0": 4}}, "tokens": 6000}
    config = {
        "models": {"clip": model},
        "corpora": {"digits": {"digits": True, "images": 100}, "docs": {"documentation": ["tqdm"], "tokens": 700}},
        "harvests": {
            "patches": {"model": "clip", "corpus": "digits", "sites": ["layers.1.resid_post"]},
            "images": {"model": "clip", "corpus": "digits", "sites": ["layers.1.resid_post"], "rows": "images"},
            "texts": {"model": "clip", "corpus": "docs", "sites": ["pooled"], "rows": "texts"},
        },
        "dictionaries": {"d": {**dictionary, "harvest": "patches"}},
    }
    experiment = load_experiment(config, "configs/mine.yaml")
    found = plan_of(experiment)
    assert {name: harvest.rows for name, harvest in found.harvests.items()} == {"patches": 900, "images": 100}
    assert found.harvests["patches"].tokens == found.harvests["images"].tokens == 1000
    assert found.unknown == (
        "harvest texts, 700 tokens: its rows are texts, whose number is known once the corpus is prepared",
    )
    # The first lines know the same, from the config alone.
    assert "rows: 1,000" in first_lines(experiment, "mine.yaml", tmp_path)


def test_the_command(tmp_path: Path) -> None:
    """In a process of its own, where `harvest` hands over to `analyze`; a config.json is enough."""
    llama = tiny_llama(tmp_path / "llama")
    config = tmp_path / "mine.yaml"
    config.write_text(yaml.safe_dump(config_of("someone/llama")))
    arguments = [
        sys.executable,
        "-m",
        "harvest",
        "plan",
        str(config),
        "--architecture",
        f"tiny={llama / 'config.json'}",
    ]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path, env=offline)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert re.search(r"^docs +700 +2 × 24 +\d+ kB", done.stdout, re.M), done.stdout
    assert re.search(r"^sae +2,376 +23 ", done.stdout, re.M)  # 48 · (24 + 24 + 1) + 24 parameters
    for line in ("disk: ", "memory: ", "time: about ", "less disk, of "):
        assert re.search(f"^{line}", done.stdout, re.M), done.stdout
    assert "not known" not in done.stdout


def test_what_could_be_changed(tmp_path: Path, plan: Any) -> None:
    config = config_of(tiny_llama(tmp_path / "llama"), tokens="50M")
    config["dictionaries"].pop("transcoder")
    said = plan(json.dumps(config))
    assert said.status == 0
    (disk,) = [line for line in said.out.splitlines() if line.startswith("less disk")]
    assert "leaving out layers.1.mlp_in of docs, which no dictionary reads, saves 4.8" in disk
    assert "half the tokens of corpora.docs saves 8.13 GB" in disk
    assert "leaving out layers.40%.resid_post of docs and sae with it saves" in disk
    assert "sae with it" not in said.out.replace(disk, "")  # what is left has not the time of the whole


def test_another_model(tmp_path: Path, plan: Any) -> None:
    said = plan(json.dumps(config_of("someone/llama")), "--model", tiny_llama(tmp_path / "llama"))
    assert said.status == 0
    assert said.out.startswith("plan of plan-llama, as plan has it\n")
    assert "not known" not in said.out


def test_a_config_that_lies_with_the_weights_is_not_fetched(plan: Any) -> None:
    config = config_of("someone/llama")
    config["models"]["tiny"]["gguf"] = "llama.gguf"
    assert "model someone/llama: its config lies in llama.gguf, with its weights" in plan(json.dumps(config)).out


def test_a_model_out_of_reach(tmp_path: Path, plan: Any) -> None:
    """What does not depend on it is there, and one line says how to know the rest."""
    config = config_of("someone/llama")
    config["harvests"]["bench"] = {"bench": {"features": 20, "sites": {"p": 16}, "interference": 0.3}}
    config["dictionaries"]["known"] = {**config["dictionaries"]["sae"], "harvest": "bench", "reads": ["p"]}
    said = plan(json.dumps(config))
    assert said.status == 0
    assert re.search(r"^bench +100,000 +1 × 16", said.out, re.M)
    assert re.search(r"^known ", said.out, re.M)
    assert not re.search(r"^sae ", said.out, re.M)
    (line,) = [line for line in said.out.splitlines() if line.startswith("not known")]
    assert line.startswith("not known: harvest docs, 700 tokens: model someone/llama: no such directory, not in")
    assert line.endswith("or give its config: --architecture tiny=config.json")


@pytest.mark.parametrize(
    ("changes", "options", "says"),
    [
        ({"models": {"tiny": {"id": "./nowhere"}}}, [], "harvests.docs: model ./nowhere: the directory does not exist"),
        ({"harvests": {}}, [], "harvests: {}: Dictionary should have at least 1 item"),
        ({"modles": {}}, [], "modles: unknown key; there are name, models"),
        ({}, ["--architecture", "tiny"], "--architecture: 'tiny' is not <model>=<file>"),
        ({}, ["--architecture", "tiny=nowhere.json"], "--architecture: nowhere.json: cannot be read (No such file"),
        ({}, ["--architecture", "gpt=config.json"], "--architecture: gpt: no such model; there are tiny"),
    ],
)
def test_mistakes(changes: dict[str, Any], options: list[str], says: str, plan: Any) -> None:
    said = plan(json.dumps(config_of("someone/llama") | changes), *options)
    assert said.status == 2
    assert len(said.errors) == 1, said.errors
    assert says in said.errors[0]


def test_a_site_or_a_file_that_is_not_there(tmp_path: Path, plan: Any) -> None:
    config = config_of(tiny_llama(tmp_path / "llama"))
    config["harvests"]["docs"]["sites"] = ["layers.40.resid_post"]
    for text, says in (
        (json.dumps(config), "error: harvests.docs: layers.40.resid_post: this model has layers 0 to 3"),
        (str(tmp_path / "mine.yaml"), "mine.yaml' cannot be read: No such file or directory"),
        ("\n- a list", "has no keys; expected models, corpora, harvests, dictionaries"),
    ):
        said = plan(text)
        assert (said.status, len(said.errors)) == (2, 1), said
        assert says in said.errors[0]


def test_the_first_lines_need_no_torch(tmp_path: Path) -> None:
    """They know of a model what its config.json says, and agree with the plan."""
    config = config_of(tiny_llama(tmp_path / "llama"))
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    script = (
        "import pathlib, sys, yaml\n"
        "from analyze.experiment import load_experiment\n"
        "from analyze.first_lines import print_first_lines\n"
        "experiment = load_experiment(yaml.safe_load(open('mine.yaml')), 'mine.yaml')\n"
        "print_first_lines(experiment, 'mine.yaml', pathlib.Path('results/mine'))\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    planned = plan_of(load_experiment(config, "mine.yaml"))
    lines = done.stdout.splitlines()
    assert lines[:2] == ["plan of mine: harvests: 1, dictionaries: 2", "  rows: 700"]
    assert f"  disk: {planned.disk / 1000:.3g} kB at the peak" in lines[2]
    assert lines[-1].endswith("python -m harvest plan mine.yaml")


def test_first_lines_without_the_model_say_how_to_know(tmp_path: Path) -> None:
    said = first_lines(load_experiment(config_of("someone/llama"), "mine.yaml"), "mine.yaml", tmp_path)
    assert said.splitlines()[1] == (
        "  not known: harvest docs, 700 tokens: how wide its sites are; `python -m harvest plan mine.yaml` asks the "
        "model's config"
    )


def header_of(config: Path) -> str:
    """The comment that a config begins with."""
    lines = config.read_text().splitlines()
    return " ".join(line.lstrip("# ") for line in lines[: next(i for i, x in enumerate(lines) if x[:1] != "#")])


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_headers_say_what_the_plan_says(config: Path) -> None:
    """Figures to two digits. Minutes on two cores are measured, not planned."""
    experiment = load_experiment(yaml.safe_load(config.read_text()), str(config))
    files = {
        name: ROOT / f"tests/fixtures/architectures/{ARCHITECTURES[model.id]}.json"
        for name, model in experiment.models.items()
        if model.id in ARCHITECTURES
    }
    planned = plan_of(experiment, **files)
    assert not planned.unknown
    header = header_of(config)
    costs = header[header.index("Costs, as `python -m harvest plan` counts them: ") :]

    def figure(pattern: str, units: dict[str, float]) -> float:
        found = re.search(pattern, costs)
        assert found, (pattern, costs)
        return float(found[1].replace(",", "")) * units[found[2]]

    rows = sum(harvest.rows for harvest in planned.harvests.values())
    assert rows == pytest.approx(figure(r"([\d.,]+)([kM]?) rows", COUNTS), rel=0.01)
    assert planned.disk == pytest.approx(figure(r"([\d.]+) (MB|GB|TB) of disk", BYTES), rel=0.05)
    if "of an H100" not in costs:
        assert planned.peak(0)[1] == pytest.approx(figure(r"([\d.]+) (MB|GB) of memory", BYTES), rel=0.05)
        return
    assert planned.peak(1)[1] == pytest.approx(figure(r"([\d.]+) (MB|GB) of GPU memory", BYTES), rel=0.05)
    assert planned.peak(2)[1] == pytest.approx(figure(r"([\d.]+) (MB|GB) beside it", BYTES), rel=0.05)
    taken = figure(r"([\d.]+) (hours|minutes) of an H100", {"hours": 1, "minutes": 1 / 60})
    assert sum(hours(planned, H100).values()) == pytest.approx(taken, rel=0.05)


def test_a_dictionary_of_a_site_that_is_not_harvested(tmp_path: Path) -> None:
    config = config_of(tiny_llama(tmp_path / "llama"))
    config["dictionaries"]["sae"]["reads"] = ["layers.0.resid_post"]
    with pytest.raises(
        UserError, match=r"layers.0.resid_post: no such site in the harvest; it has layers.2.resid_post"
    ):
        plan_of(load_experiment(config, "mine.yaml"))
