"""The demo's pipeline on tiny models: from documentation to a report, repeated, changed and killed."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.tiny import tiny_gpt2, tiny_llama
from tests.workflow.conftest import REPOSITORY, run, snakemake, store_bytes, write_config

MANIFEST = "harvest/docs/activations.manifest.json"
WEIGHTS = "train/sae/sae_weights.safetensors"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which everything was made once, for a Llama of four layers."""
    folder = tmp_path_factory.mktemp("finished")
    write_config(folder, tiny_llama(folder / "llama"))
    done = run(folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "report: results/tiny/report/index.html" in done.stdout + done.stderr
    assert done.stdout.startswith("plan of tiny: harvests: 1, dictionaries: 2\n  rows: 2,000\n  disk: "), done.stdout
    return folder


def states(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_everything_up_to_the_report(finished: Path) -> None:
    results = finished / "results/tiny"
    manifest = json.loads((results / MANIFEST).read_text())
    assert (manifest["rows"], manifest["dtype"]) == (2000, "float32")
    assert list(manifest["sites"]) == ["layers.2.mlp_in", "layers.2.mlp_out", "layers.2.resid_post"]
    for name in ("sae", "transcoder"):
        training = json.loads((results / f"train/{name}/training.json").read_text())
        logged = [json.loads(line) for line in (results / f"train/{name}/metrics.jsonl").read_text().splitlines()]
        assert len(logged) == training["steps"] == 6000 // 256
        assert logged[-1]["loss"] < logged[0]["loss"]
        summary = json.loads((results / f"analyze/{name}/summary.json").read_text())
        assert summary
    for name, site in (("sae", "layers.2.resid_post"), ("transcoder", "layers.2.mlp_out")):
        geometry = json.loads((results / f"analyze/{name}/geometry.json").read_text())
        assert geometry["site"] == site
        assert len(geometry["tokens"]) >= 20
    assert json.loads((results / "stability.json").read_text()) == {"pairs": [], "partners": []}
    page = (results / "report/index.html").read_text()
    assert "sae" in page
    assert "transcoder" in page
    assert not list(finished.rglob("*.partial"))


def test_long_work_shows_rate_and_time_left(finished: Path) -> None:
    for log in ("prepare-docs", "harvest-docs-1-of-1", "train-sae"):
        said = (finished / f"results/tiny/logs/{log}.log").read_text()
        assert re.search(r"100%\|█+\| [^\[]+\[\d\d:\d\d<\d\d:\d\d, .*(token|row)/s", said), said


def test_a_report_that_can_be_passed_on(finished: Path) -> None:
    done = run(finished, "--report", "report.zip")
    assert done.returncode == 0, done.stderr[-3000:]
    with zipfile.ZipFile(finished / "report.zip") as file:
        packed = {name.partition("/data/raw/")[2].partition("/")[2]: file.read(name) for name in file.namelist()}
    report = finished / "results/tiny/report"
    written = {str(path.relative_to(report)): path.read_bytes() for path in report.rglob("*") if path.is_file()}
    assert packed.items() >= {name: data for name, data in written.items() if not name.startswith(".")}.items()


def test_a_second_run_does_nothing(finished: Path) -> None:
    before = states(finished / "results")
    done = run(finished)
    assert done.returncode == 0
    assert "Nothing to be done" in done.stderr
    assert states(finished / "results") == before


def test_a_process_for_each_gpu(finished: Path, tmp_path: Path) -> None:
    """GPUs alone are no reason to train again. What is trained with two is the same dictionary."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)  # with its times
    write_config(tmp_path, finished / "llama")
    gpus = ["--set-resources", "train:gpu=2"]
    assert "Nothing to be done" in run(tmp_path, *gpus).stderr
    trained = tmp_path / "results/tiny/train/sae"
    alone = (trained / "metrics.jsonl").read_text().splitlines()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ACCELERATE_USE_CPU", "true")
        done = run(tmp_path, f"results/tiny/{WEIGHTS}", "--forcerun", "train", *gpus)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((trained / "training.json").read_text())["processes"] == 2
    for one, two in zip(alone, (trained / "metrics.jsonl").read_text().splitlines(), strict=True):
        assert json.loads(two) == pytest.approx(json.loads(one), rel=1e-4)


def test_a_harvest_in_parts(finished: Path, tmp_path: Path) -> None:
    """Three jobs make the same bytes as one; one of them that is killed is rerun alone."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    harvest = tmp_path / "results/tiny/harvest/docs"
    shutil.rmtree(harvest / "activations.zarr")
    shutil.rmtree(harvest / "parts")
    (harvest / "activations.manifest.json").unlink()
    write_config(tmp_path, finished / "llama")
    target, parts = f"results/tiny/{MANIFEST}", ["--set-scatter", "parts=3"]
    running = subprocess.Popen(
        snakemake(tmp_path, target, "--keep-going", *parts), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not (found := processes_with("harvest", "run", str(harvest.relative_to(tmp_path)), "2/3")):
        assert running.poll() is None
        time.sleep(0.01)
    os.kill(found[0], signal.SIGKILL)
    assert running.wait() == 1
    assert sorted(path.name for path in (harvest / "parts").iterdir()) == ["1-of-3.done", "3-of-3.done"]
    done = run(tmp_path, target, *parts)
    assert done.returncode == 0, done.stderr[-3000:]
    jobs = re.findall(r"^(harvest\w*) +(\d+)$", done.stderr, re.M)
    assert sorted(jobs) == [("harvest", "1"), ("harvest_part", "1")]
    assert store_bytes(harvest) == store_bytes(finished / "results/tiny/harvest/docs")
    assert "Nothing to be done" in run(tmp_path, *parts).stderr


def processes_with(*words: str) -> list[int]:
    """Numbers of the processes whose command has all these words, or paths that begin with them."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if all(any(argument.startswith(word) for argument in command) for word in words):
                found.append(int(folder.name))
    return found


def test_another_model_with_no_other_edit(finished: Path) -> None:
    before = states(finished / "results")
    model = tiny_gpt2(finished / "gpt2")
    done = run(finished, "--until", "train", "--config", f"model={model}")
    assert done.returncode == 0, done.stderr[-3000:]
    results = finished / "results/tiny-gpt2"
    manifest = json.loads((results / MANIFEST).read_text())
    assert list(manifest["sites"]) == ["layers.1.mlp_in", "layers.1.mlp_out", "layers.1.resid_post"]
    assert {site["width"] for site in manifest["sites"].values()} == {32}
    assert {path.parent.name for path in results.glob("train/*/sae_weights.safetensors")} == {"sae", "transcoder"}
    assert states(finished / "results").items() >= before.items()


def test_killed_in_the_middle_of_a_harvest(finished: Path, tmp_path: Path) -> None:
    """Snakemake and everything it started; then the same command, to the same manifest and weights."""
    write_config(tmp_path, finished / "llama")
    results = tmp_path / "results/tiny"
    markers = results / "harvest/docs/activations.zarr/statistics/rows/c"
    target = f"results/tiny/{WEIGHTS}"
    with (tmp_path / "log").open("w") as log:
        running = subprocess.Popen(snakemake(tmp_path, target), start_new_session=True, stdout=log, stderr=log)
        while not (markers / "3").exists():
            assert running.poll() is None, (tmp_path / "log").read_text()[-3000:]
            time.sleep(0.002)
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    left = states(markers)
    assert 4 <= len(left) < 16
    assert not (results / MANIFEST).exists()
    assert run(tmp_path, "--unlock").returncode == 0  # Snakemake asks for this itself after a kill
    done = run(tmp_path, target)
    assert done.returncode == 0, done.stderr[-3000:]
    assert states(markers).items() >= left.items()
    for file in (MANIFEST, WEIGHTS):
        assert (results / file).read_bytes() == (finished / "results/tiny" / file).read_bytes(), file


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (["harvests", "docs", "site"], ["embed"], "harvests.docs.site: unknown key; there are sites, batch_tokens"),
        (["harvests", "docs"], 3, "harvests.docs: 3: Input should be a valid dictionary"),
        (["dictionaries", "sae", "harvest"], "dogs", "dictionaries.sae.harvest: dogs: no such name; there are docs"),
    ],
    ids=["unknown key", "number", "unknown name"],
)
def test_a_bad_config_is_one_line(tmp_path: Path, keys: list[str], value: object, said: str) -> None:
    write_config(tmp_path, tmp_path / "not read")
    part = config = yaml.safe_load((tmp_path / "tiny.yaml").read_text())
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    done = run(tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert len([line for line in done.stderr.splitlines() if "error" in line.lower()]) == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists()


def test_training_imports_no_model_library() -> None:
    program = """
import importlib, pkgutil, sys, train
for module in pkgutil.walk_packages(train.__path__, "train."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    imported = set(done.stdout.split())
    assert {"torch", "accelerate", "zarr"} <= imported
    assert not imported & {"transformers", "transformer_lens", "open_clip", "torchvision", "timm", "gguf"}
