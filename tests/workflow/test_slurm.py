"""profiles/slurm on a real Slurm of this machine: parts and training are jobs, and one that dies is rerun alone."""

import contextlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from tests.tiny import tiny_llama
from tests.workflow.conftest import REPOSITORY, store_bytes, write_config
from tests.workflow.slurm_cluster import PARTITION, CannotStartError, cluster

PROFILE = REPOSITORY / "profiles/slurm"
README = (PROFILE / "README.md").read_text()
PREPARE, PLAN, RUN = re.findall(r"^snakemake .*$", README, re.M)
TOKENS = 40_000
SUMMARY = "results/tiny/analyze/sae/summary.json"
# Snakemake itself, but it asks Slurm every half second, where the plugin would wait ten seconds longer each time.
IMPATIENT = """
import asyncio
from snakemake.cli import main
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor

RemoteExecutor.sleep = lambda self: asyncio.sleep(0.5)
main()
"""
Environment = dict[str, str]


class Finished(NamedTuple):
    """Two folders in which the same was made: on the cluster with two deaths, and locally without any."""

    results: Path
    undisturbed: Path
    jobs: dict[str, list[dict[str, str]]]
    written: dict[str, int]  # shards at the death of a part, and when they were written
    checkpoints: list[str]  # at the death of training


@pytest.fixture(scope="module")
def slurm() -> Iterator[Environment]:
    with contextlib.ExitStack() as stack:
        try:
            environment = stack.enter_context(cluster())
        except CannotStartError as reason:
            pytest.skip(f"no Slurm here: {reason}")
        yield {**environment, "ACCELERATE_USE_CPU": "true"}


def write_profile(folder: Path) -> None:
    """profiles/slurm for one node of two cores and two GPUs, without accounting, its partition named."""
    profile = yaml.safe_load((PROFILE / "profile.v9+.yaml").read_text())
    profile |= {"cores": 1, "max-threads": 1, "set-scatter": {"parts": 2}, "slurm-status-command": "squeue"}
    profile["set-resources"]["train"]["gpu"] = 2
    profile["default-resources"]["slurm_partition"] = PARTITION
    folder.mkdir()
    (folder / "profile.v9+.yaml").write_text(yaml.safe_dump(profile))


def write_long_config(folder: Path, model: Path) -> None:
    """The smallest config, but long enough for something to be killed in its middle."""
    write_config(folder, model)
    config = yaml.safe_load((folder / "tiny.yaml").read_text())
    config["corpora"]["docs"] |= {"tokens": 12_000, "context": 16}
    config["harvests"]["docs"] |= {"sites": config["harvests"]["docs"]["sites"][:1], "batch_tokens": 16}
    config["dictionaries"] = {"sae": {**config["dictionaries"]["sae"], "tokens": TOKENS}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))


def words(command: str, folder: Path, *arguments: str) -> list[str]:
    """A command of the README, in `folder`."""
    for said, here in {
        "profiles/slurm": folder / "profile",
        "configs/mine.yaml": folder / "tiny.yaml",
        "/scratch/$USER/dictionaries": folder,
    }.items():
        command = command.replace(said, str(here))
    return [sys.executable, "-c", IMPATIENT, *arguments, *shlex.split(command)[1:]]


@contextlib.contextmanager
def started(command: list[str], environment: Environment, log: Path) -> Iterator[Callable[[], int]]:
    """Runs beside what follows; yields what waits for its end and returns its status."""
    with log.open("w") as file:
        running = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=file, stderr=file)
    try:
        yield lambda: running.wait(240)
    except BaseException:
        print(log.read_text()[-5000:])
        raise
    finally:
        running.kill()
        running.wait()


def jobs(environment: Environment) -> dict[str, list[dict[str, str]]]:
    """Of each rule and its wildcards, what Slurm says of each submission."""
    said = subprocess.check_output(["scontrol", "--oneliner", "show", "job"], env=environment, text=True)
    found: dict[str, list[dict[str, str]]] = {}
    for line in said.splitlines():
        facts = dict(re.findall(r"(\w+)=(\S+)", line))
        if "Comment" in facts:
            found.setdefault(facts["Comment"].removeprefix("rule_").replace("_wildcards_", " "), []).append(facts)
    return found


def wait_for(ready: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not ready():
        assert time.monotonic() < until
        time.sleep(0.01)


def signal_job(environment: Environment, name: str, signal: str) -> None:
    """All processes of the job's step get it, and the job is over."""
    (job,) = jobs(environment)[name]
    subprocess.run(["scancel", f"--signal={signal}", job["JobId"]], env=environment, check=True)
    wait_for(lambda: jobs(environment)[name][0]["JobState"] != "RUNNING")


@pytest.fixture(scope="module")
def finished(slurm: Environment, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A part is killed and waits for a second call; training is told to end, and Snakemake restarts it."""
    folder, alone = tmp_path_factory.mktemp("cluster"), tmp_path_factory.mktemp("alone")
    write_long_config(folder, tiny_llama(folder / "llama"))
    write_profile(folder / "profile")
    with started(words(PREPARE, folder), slurm, folder / "log") as ended:
        assert ended() == 0
    shutil.copytree(folder, alone, dirs_exist_ok=True)
    results = folder / "results/tiny"

    local = PREPARE.replace("--until prepare", f"{SUMMARY} --set-resources train:gpu=2 --max-threads 1")
    with started(words(local, alone), slurm, alone / "log") as alone_ended:
        shards = results / "harvest/docs/activations.zarr/statistics/rows/c"
        only_once = ["results/tiny/harvest/docs/activations.manifest.json", "--retries", "0"]
        with started(words(RUN, folder, *only_once), slurm, folder / "log") as ended:
            wait_for((shards / "1").exists)
            signal_job(slurm, "harvest_part docs_1-of-2", "KILL")
            assert ended() == 1
        written = times(shards)

        metrics = results / "checkpoints/sae/metrics.jsonl"
        with started(words(RUN, folder, SUMMARY), slurm, folder / "log") as ended:
            wait_for(lambda: metrics.exists() and metrics.stat().st_size > 0)
            signal_job(slurm, "train sae", "TERM")
            checkpoints = [path.name for path in metrics.parent.glob("step-*")]
            assert ended() == 0
        assert alone_ended() == 0
    return Finished(results, alone / "results/tiny", jobs(slurm), written, checkpoints)


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_who_died_was_rerun_alone(finished: Finished) -> None:
    states = {name: [job["JobState"] for job in submitted] for name, submitted in finished.jobs.items()}
    assert states == {
        "harvest_part docs_1-of-2": ["CANCELLED", "COMPLETED"],
        "harvest_part docs_2-of-2": ["COMPLETED"],
        "train sae": ["FAILED", "COMPLETED"],
        "measure sae": ["COMPLETED"],
    }


def test_it_went_on_where_it_stopped(finished: Finished) -> None:
    shards = times(finished.results / "harvest/docs/activations.zarr/statistics/rows/c")
    assert 8 + 2 <= len(finished.written) < len(shards) == 16
    assert shards.items() >= finished.written.items()
    (checkpoint,) = finished.checkpoints
    assert 0 < int(checkpoint.removeprefix("step-")) < TOKENS // 256
    assert "train:   0%" not in (finished.results / "logs/train-sae.log").read_text()


def test_a_job_gets_what_the_profile_asks_for(finished: Finished) -> None:
    """One job for all GPUs of training, and in it a process for each."""
    part, training, measure = ("harvest_part docs_1-of-2", "train sae", "measure sae")
    for name, gpus, memory in ((part, 1, "32000M"), (training, 2, "125G"), (measure, 1, "32000M")):
        job = finished.jobs[name][-1]
        assert (job["TresPerJob"], job["NumTasks"], job["NumNodes"]) == (f"gres:gpu:{gpus}", "1", "1")
        assert (job["MinMemoryNode"], job["TimeLimit"], job["Partition"]) == (memory, "1-00:00:00", PARTITION)
    assert json.loads((finished.results / "train/sae/training.json").read_text())["processes"] == 2


def test_results_are_those_of_an_undisturbed_run(finished: Finished) -> None:
    first, second = finished.results, finished.undisturbed
    assert store_bytes(first / "harvest/docs") == store_bytes(second / "harvest/docs")
    for name in ("train/sae/cfg.json", "train/sae/sae_weights.safetensors", "train/sae/metrics.jsonl"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    for path in (second / "analyze/sae").rglob("*"):
        if path.is_file():
            assert (first / path.relative_to(second)).read_bytes() == path.read_bytes(), path


def test_the_profile_plans_as_it_stands(tmp_path: Path) -> None:
    """Without a cluster: what the README's dry run shows."""
    command = PLAN.replace("configs/mine.yaml", "configs/demo.yaml").replace(
        "/scratch/$USER/dictionaries", str(tmp_path)
    )
    program = str(Path(sys.executable).parent / "snakemake")
    done = subprocess.run([program, *shlex.split(command)[1:]], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^harvest_part +8$", done.stdout + done.stderr, re.M)


def test_the_plugin_is_installed_as_the_readme_says() -> None:
    assert "'.[slurm]'" in README
    (wanted,) = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]["slurm"]
    name, _, least = wanted.partition(">=")
    pinned = dict(re.findall(r"^([\w-]+)==(.+)$", (REPOSITORY / "constraints.txt").read_text(), re.M))
    assert pinned[name].startswith(least)
