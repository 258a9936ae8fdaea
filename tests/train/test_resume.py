"""A run may be stopped or killed at any moment, and ends the same."""

import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from harvest.errors import UserError
from harvest.store import Store
from tests.training import ROOT, command, run, spec_of, start, step_reached, watch_steps
from train.batches import Batch
from train.checkpoint import Checkpoints
from train.sparsity import SPARSITIES
from train.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


class StoppedError(Exception):
    """Stands for a kill."""


VARIANTS: dict[str, dict[str, Any]] = {
    **{method: {"sparsity": {method: {"l0": 3}}} for method in SPARSITIES},
    "auxk": {"auxk": {"dead_after": 1_000}},
    "matryoshka": {"matryoshka": {"prefixes": [0.25, 1]}},
    "skip transcoder": {"writes": ["y"], "skip": True},
    "crosscoder": {"reads": ["x", "y"]},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_stopped_run_continues_to_the_same_bytes(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    """Everything a step depends on is in a checkpoint: moments, counters, thresholds, the controller, the order."""
    spec = spec_of(**VARIANTS[variant], batch=100, holdout=0.5, tokens=6_000)  # 60 steps; an epoch has 40
    undisturbed = run(spec, store, tmp_path / "undisturbed")
    original = Checkpoints.save
    for stop_at in (1, 27, 50):

        def save(self: Checkpoints, step: int, *rest: Any, stop_at: int = stop_at) -> None:
            if step == stop_at:
                original(self, step, *rest)
                raise StoppedError

        with monkeypatch.context() as patched:
            patched.setattr(Checkpoints, "save", save)
            with pytest.raises(StoppedError):
                run(spec, store, tmp_path / "stopped", every=0)
    assert_same(run(spec, store, tmp_path / "stopped"), undisturbed)


def assert_same(output: Path, undisturbed: Path) -> None:
    assert sorted(path.name for path in output.iterdir()) == sorted(path.name for path in undisturbed.iterdir())
    for name in ("metrics.jsonl", "sae_weights.safetensors", "cfg.json"):
        assert (output / name).read_bytes() == (undisturbed / name).read_bytes(), name
    assert not (output.parent / "checkpoints").exists()


def test_killed_at_any_moment_it_ends_with_the_same_bytes(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`kill -9` again and again, mostly while a checkpoint is written; then the command itself."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # so that the fork server finds what it is to import
    spec = spec_of(tokens=128 * 150, auxk={"dead_after": 2_000})
    undisturbed = run(spec, store, tmp_path / "undisturbed")
    moments = random.Random()  # noqa: S311
    folder = tmp_path / "killed"
    folder.mkdir()
    killed_at = []
    for attempt in range(6):
        before = step_reached(folder)
        process = start(spec, store, folder)
        steps = 0 if attempt == 0 else moments.randint(1, 15)  # the first may not even have begun
        while process.is_alive() and step_reached(folder) < before + steps:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -9, (folder / "stderr").read_text()
        killed_at.append(step_reached(folder))
    assert len(killed_at) >= 4, killed_at
    assert killed_at == sorted(killed_at), "no kill loses a checkpoint"
    if process.exitcode != 0:
        assert 0 < killed_at[-1] < 150
        command(spec, store, folder)
    assert_same(folder / "output", undisturbed)


def test_nan_stops_training_and_keeps_the_last_good_checkpoint(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it appears between two logged steps."""

    def poison(trainer: Trainer, batch: Batch) -> None:
        if trainer.step == 7:
            trainer.dictionary.W_enc.data[3] = torch.nan

    spec = spec_of(tokens=128 * 600)  # every third step is logged
    with monkeypatch.context() as patched:
        watch_steps(patched, poison)
        with pytest.raises(UserError, match="step 7"):
            run(spec, store, tmp_path, every=0)
    assert step_reached(tmp_path) == 6
    assert not (tmp_path / "output" / "sae_weights.safetensors").exists()
    with monkeypatch.context() as patched:
        watch_steps(patched, poison)
        with pytest.raises(UserError, match=r"loss is nan at step 8, in rows \[\d+, "):
            run(spec, store, tmp_path)
    assert step_reached(tmp_path) == 6


def test_other_settings_do_not_continue_a_run(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(trainer: Trainer, batch: Batch) -> None:
        if trainer.step == 3:
            raise StoppedError

    with monkeypatch.context() as patched:
        watch_steps(patched, stop)
        with pytest.raises(StoppedError):
            run(spec_of(), store, tmp_path, every=0)
    with pytest.raises(UserError, match=r"other settings \(spec.learning_rate\)"):
        run(spec_of(learning_rate=1e-3), store, tmp_path)
    assert step_reached(tmp_path) == 2
