"""Many processes train what one trains, step by step."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harvest.store import Store
from tests.train.ranks_cases import CASES, STEPS, anchors_beside, in_float64, train_case
from tests.training import ROOT, command, metrics_of, run, spec_of
from train.objective import spread
from train.ranks import ALONE

pytestmark = pytest.mark.usefixtures("one_thread")
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.fixture(scope="module")
def together(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have trained every case."""
    folder = tmp_path_factory.mktemp("together")
    anchors_beside(store)
    done = subprocess.run(
        [sys.executable, *TORCHRUN, "-m", "tests.train.ranks_cases", str(store.path), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(
    store: Store, tmp_path: Path, together: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Each of 200 steps: the loss, its terms, l0, the penalty's weight; which latents fired; and what is saved."""
    in_float64(monkeypatch)
    train_case(case, store, tmp_path)
    alone = metrics_of(tmp_path / "output")
    assert len(alone) == STEPS
    if "auxk" in case:
        assert sum("auxk" in line for line in alone) > STEPS / 2, "there were dead latents to speak of"
    for one, two in zip(alone, metrics_of(together / case / "output"), strict=True):
        assert two == pytest.approx(one, rel=1e-9, abs=1e-12)
    idle = (tmp_path / "idle.0.json").read_text()
    for rank in range(2):
        assert (together / case / f"idle.{rank}.json").read_text() == idle
    report = json.loads((together / case / "output" / "training.json").read_text())
    assert report["processes"] == 2


def test_the_command_under_torchrun(store: Store, tmp_path: Path) -> None:
    """In float32, as it is used: the same curve to 1e-4."""
    spec = spec_of(tokens=128 * STEPS, sparsity={"gated": {"l0": 3}})
    alone = metrics_of(run(spec, store, tmp_path / "alone"))
    command(spec, store, tmp_path / "two", *TORCHRUN)
    together = metrics_of(tmp_path / "two" / "output")
    assert len(alone) == len(together) == STEPS
    for one, two in zip(alone, together, strict=True):
        assert two == pytest.approx(one, rel=1e-4)


@given(st.lists(st.floats(-9, 9, width=32), max_size=20), st.integers(1, 25))
def test_the_largest_of_one_process(numbers: list[float], k: int) -> None:
    found = ALONE.largest(torch.tensor(numbers), k)
    assert sorted(found.tolist(), reverse=True) == sorted(numbers, reverse=True)[:k]


def test_spread_is_about_the_mean() -> None:
    x_BD = torch.randn(50, 4, dtype=torch.float64) + 100
    torch.testing.assert_close(spread(x_BD, ALONE), (x_BD - x_BD.mean(0)).square().sum())
