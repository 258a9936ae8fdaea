"""Many processes train what one trains, step by step."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import accelerate
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from harvest.errors import UserError
from harvest.files import differences_of
from harvest.store import Store
from tests.train.ranks_cases import CASES, STEPS, make_case_anchors, train_all
from tests.training import ROOT, TWO_PROCESSES, metrics_of, run, spec_of, step_reached
from train.objective import spread
from train.ranks import ALONE
from train.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def alone(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this process has trained every case."""
    folder = tmp_path_factory.mktemp("alone")
    make_case_anchors(store)
    train_all(store, folder)
    return folder


@pytest.fixture(scope="module")
def together(store: Store, alone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have."""
    folder = tmp_path_factory.mktemp("together")
    torchrun("tests.train.ranks_cases", str(store.path), str(folder))
    return folder


def torchrun(*arguments: str) -> None:
    process = start_torchrun(*arguments)
    _, errors = process.communicate()
    assert process.returncode == 0, errors[-3000:]


def start_torchrun(*arguments: str) -> subprocess.Popen[str]:
    """A module in two processes, each with one thread."""
    return subprocess.Popen(
        [sys.executable, *TWO_PROCESSES, "-m", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("split", STEPS)
def test_two_processes_train_as_one(alone: Path, together: Path, split: str, case: str) -> None:
    """Each step: the loss, its terms, l0, the penalty's weight; which latents fired; and what is saved."""
    alone, together = alone / split / case, together / split / case
    curve = metrics_of(alone / "output")
    assert len(curve) == STEPS[split]
    if "auxk" in case:
        assert sum("auxk" in line for line in curve) > STEPS[split] / 2, "there were dead latents to speak of"
    for one, two in zip(curve, metrics_of(together / "output"), strict=True):
        assert two == pytest.approx(one, rel=1e-9, abs=1e-12)
    events, same_events = ((folder / "output" / "resampling.jsonl").read_text() for folder in (alone, together))
    assert bool(events) == case.startswith("resampled")
    for event, same in zip(
        map(json.loads, events.splitlines()), map(json.loads, same_events.splitlines()), strict=True
    ):
        assert event.keys() == same.keys()
        assert all(same[key] == pytest.approx(event[key], rel=1e-9) for key in event)
    (idle_TF,) = idle_of(alone)
    for each_TF in idle_of(together):
        assert torch.equal(each_TF, idle_TF)
    report = json.loads((together / "output" / "training.json").read_text())
    assert report["processes"] == 2
    cfgs = (json.loads((folder / "output" / "cfg.json").read_text()) for folder in (together, alone))
    for _, two, one in differences_of(*cfgs):
        assert two == pytest.approx(one, rel=1e-9), "a threshold"
    same_weights(together, alone)


def idle_of(folder: Path) -> list[torch.Tensor]:
    """After each step and for each latent, the rows since it fired: `(steps, 64)`, from each process that has all."""
    each = [torch.tensor(json.loads(path.read_text())) for path in sorted(folder.glob("idle.*.json"))]
    return each if each[0].shape[1] == 64 else [torch.cat(each, 1)]


def same_weights(found: Path, expected: Path) -> None:
    found, expected = (folder / "output" / "sae_weights.safetensors" for folder in (found, expected))
    weights = load_file(found)
    for name, tensor in load_file(expected).items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-5, atol=1e-6)
    save_file(weights, found.with_name("again"))
    assert found.read_bytes() == found.with_name("again").read_bytes(), "the bytes that safetensors writes"


def test_split_latents_killed_and_continued(store: Store, tmp_path: Path) -> None:
    """`kill -9` of both processes, then the same command: each takes up its own latents. In float32, as it is used."""
    spec = spec_of(tokens=128 * 200, sparsity={"gated": {"l0": 3}}, split="latents")
    alone = metrics_of(run(spec, store, tmp_path / "alone"))
    folder = tmp_path / "two"
    arguments = ["train", "run", spec.model_dump_json(), "--store", str(store.path)]
    arguments += ["--output", str(folder / "output"), "--checkpoints", str(folder / "checkpoints")]
    process = start_torchrun(*arguments, "--checkpoint-seconds", "0")
    while process.poll() is None and step_reached(folder) < 20:
        time.sleep(0.01)
    for each in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
        each.kill()
    process.communicate()
    assert 20 <= step_reached(folder) < 200
    kept = max(folder.glob("checkpoints/step-*[0-9]"))
    assert sorted(path.name for path in kept.iterdir()) == [
        "state-1-of-2.safetensors",
        "state-2-of-2.safetensors",
        "state.json",
    ]
    with pytest.raises(UserError, match="latents split over 2 processes, and there are 1; start 2 to continue"):
        run(spec, store, folder)
    torchrun(*arguments)
    for one, two in zip(alone, metrics_of(folder / "output"), strict=True):
        assert two == pytest.approx(one, rel=1e-4)
    same_weights(folder, tmp_path / "alone")


def test_latents_that_cannot_be_shared_equally(store: Store) -> None:
    class Three(accelerate.Accelerator):  # type: ignore[misc]
        num_processes = 3

    with pytest.raises(UserError, match="latents: 64 cannot be split equally over 3 processes; take a multiple"):
        Trainer(spec_of(split="latents"), store, Three(cpu=True))


@given(st.lists(st.floats(-9, 9, width=32), max_size=20), st.integers(1, 25))
def test_the_largest_of_one_process(numbers: list[float], k: int) -> None:
    found = ALONE.largest(torch.tensor(numbers), k)
    assert sorted(found.tolist(), reverse=True) == sorted(numbers, reverse=True)[:k]


def test_spread_is_about_the_mean() -> None:
    x_BD = torch.randn(50, 4, dtype=torch.float64) + 100
    torch.testing.assert_close(spread(x_BD, ALONE), (x_BD - x_BD.mean(0)).square().sum())
