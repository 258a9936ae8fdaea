"""Every command and snippet of the README does what it says."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from analyze.experiment import load_experiment
from tests.texts import make_store, words
from tests.workflow.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    lines = [line.split(" #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("python -m")])
def test_help_is_there(command: str) -> None:
    words = shlex.split(command)
    run = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, cwd=REPOSITORY)
    assert run.returncode == 0, run.stderr
    assert "Usage" in run.stdout


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("snakemake") and "mine.yaml" not in c])
def test_snakemake_commands_plan_their_jobs(command: str) -> None:
    """A dry run: the config is valid, every rule finds its inputs. Full runs are in test_demo.py and test_bench.py."""
    words = shlex.split(command.replace("/path/to/a/local/directory", str(REPOSITORY)))
    program = str(Path(sys.executable).parent / words[0])
    run = subprocess.run([program, "-n", "--nolock", *words[1:]], capture_output=True, text=True, cwd=REPOSITORY)
    assert run.returncode == 0, run.stderr
    assert re.search(r"report\s+1|Nothing to be done", run.stdout + run.stderr)


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("make")])
def test_make_targets_exist(command: str) -> None:
    run = subprocess.run(["make", "-n", *command.split()[1:]], capture_output=True, text=True, cwd=REPOSITORY)
    assert run.returncode == 0, run.stderr


def test_configs_are_valid() -> None:
    experiments = [load_experiment(yaml.safe_load(text), "configs/mine.yaml") for text in blocks("yaml")]
    kinds = [{spec.kind for spec in experiment.dictionaries.values()} for experiment in experiments]
    assert kinds.count({"sae", "transcoder", "crosscoder"}) == 2
    (published,) = [experiment for experiment in experiments if experiment.loaded]
    assert list(published.loaded) == ["published"]


def test_anyone_can_read_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (snippet,) = [block for block in blocks("python") if "zarr.open_group" in block]
    store = make_store(words(), tmp_path)
    site = next(iter(store.widths))
    for demo, here in {
        "results/demo/harvest/docs/activations.zarr": str(store.path),
        "layers.12.resid_post": site,
        "labels/package": "labels/language",
    }.items():
        assert demo in snippet
        snippet = snippet.replace(demo, here)
    names: dict[str, object] = {}
    exec(snippet, names)  # noqa: S102
    x = names["x"]
    assert isinstance(x, torch.Tensor)
    assert torch.equal(x, store.read(site, 0, len(x)))
    assert store.labels["language"][0] in capsys.readouterr().out


@pytest.mark.parametrize("config", sorted((REPOSITORY / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configs_plan_their_jobs_and_say_what_they_cost(config: Path, tmp_path: Path) -> None:
    experiment = load_experiment(yaml.safe_load(config.read_text()), str(config))
    assert "Costs" in config.read_text() or config.name == "demo.yaml"
    program = str(Path(sys.executable).parent / "snakemake")
    where = ["--directory", str(tmp_path), "--snakefile", str(REPOSITORY / "Snakefile"), "--configfile", str(config)]
    run = subprocess.run([program, "-n", "--quiet", "rules", *where], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    jobs = {
        line.split()[0]: int(line.split()[1]) for line in run.stdout.splitlines() if re.fullmatch(r"\w+ +\d+", line)
    }
    trained = jobs.get("train", 0) + sum(map(len, experiment.passes.values()))
    assert trained == len(experiment.dictionaries)
    assert jobs["report"] == 1
