"""A run may be stopped or killed at any moment, in one process or two, and ends the same."""

import json
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from harvest.errors import UserError
from harvest.store import Store
from tests.train.test_checkpoint import file_size_limit
from tests.training import (
    ROOT,
    TWO_PROCESSES,
    begin,
    job_of,
    run,
    spec_of,
    start,
    step_reached,
    watch_steps,
)
from train.anchors import make_anchors
from train.batches import Batch, Batches
from train.checkpoint import Checkpoints
from train.config import training_rows
from train.loop import train
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


def test_killed_at_any_moment_they_end_with_the_same_bytes(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`kill -9` again and again, mostly while one of two dictionaries has its checkpoint written; then the command."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # so that the fork server finds what it is to import
    specs = [spec_of(tokens=128 * 150, auxk={"dead_after": 2_000}), spec_of(tokens=128 * 150, reads=["y"])]
    undisturbed = [run(spec, store, tmp_path / f"undisturbed{n}") for n, spec in enumerate(specs)]
    moments = random.Random()  # noqa: S311
    folders = [tmp_path / "killed0", tmp_path / "killed1"]
    for folder in folders:
        folder.mkdir()
    killed_at = []
    for attempt in range(6):
        before = step_reached(folders[1])
        process = start(specs, store, folders)
        steps = 0 if attempt == 0 else moments.randint(1, 15)  # the first may not even have begun
        while process.is_alive() and step_reached(folders[1]) < before + steps:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -9, (folders[0] / "stderr").read_text()
        killed_at.append([step_reached(folder) for folder in folders])
        assert killed_at[-1][0] - killed_at[-1][1] in (0, 1)
    assert len(killed_at) >= 4, killed_at
    assert killed_at == sorted(killed_at), "no kill loses a checkpoint"
    if process.exitcode != 0:
        assert 0 < killed_at[-1][1] < 150
        train([job_of(spec, folder) for spec, folder in zip(specs, folders, strict=True)], store.path)
    for folder, alone in zip(folders, undisturbed, strict=True):
        assert_same(folder / "output", alone)


def test_dictionaries_of_one_pass_come_out_as_if_alone(store: Store, tmp_path: Path) -> None:
    """Also where one has a checkpoint and the others have none yet: it waits for them."""
    variants = [{}, *(VARIANTS[name] for name in ("batchtopk", "jumprelu", "auxk", "skip transcoder", "crosscoder"))]
    specs = [spec_of(**variant, batch=100, tokens=6_000) for variant in variants]
    alone = [run(spec, store, tmp_path / f"alone{n}") for n, spec in enumerate(specs)]
    jobs = [job_of(spec, tmp_path / f"together{n}") for n, spec in enumerate(specs)]
    with pytest.MonkeyPatch.context() as patched:
        watch_steps(patched, stop_after(17))
        with pytest.raises(StoppedError):
            train(jobs[:1], store.path, every=0)
    assert step_reached(tmp_path / "together0") == 16
    train(jobs, store.path)
    for n, output in enumerate(alone):
        assert_same(tmp_path / f"together{n}" / "output", output)


def test_sigterm_makes_a_checkpoint(store: Store, tmp_path: Path) -> None:
    """Also when whoever reads the log (`| tee`) is terminated first."""
    spec = spec_of(tokens=128 * 1_500)
    undisturbed = run(spec, store, tmp_path / "undisturbed")
    process = begin(spec, store, tmp_path / "stopped")
    wait_for_metrics(tmp_path / "stopped")
    assert process.stderr is not None
    process.stderr.close()
    process.terminate()
    assert process.wait() == 143
    assert 0 < step_reached(tmp_path / "stopped") < 1_500
    assert_same(run(spec, store, tmp_path / "stopped"), undisturbed)


def wait_for_metrics(folder: Path) -> None:
    metrics = folder / "checkpoints" / "metrics.jsonl"
    until = time.monotonic() + 60
    while not (metrics.exists() and metrics.stat().st_size):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_sigterm_to_one_of_two_processes_stops_both_at_one_step(store: Store, tmp_path: Path) -> None:
    spec = spec_of(tokens=128 * 20_000)
    process = begin(spec, store, tmp_path, *TWO_PROCESSES)
    wait_for_metrics(tmp_path)
    workers = psutil.Process(process.pid).children()
    workers[-1].terminate()
    _, stderr = process.communicate()
    says = f"stopped by SIGTERM: checkpoint at step {step_reached(tmp_path)}; the same command continues"
    assert stderr.count(says) == 1, stderr
    assert step_reached(tmp_path) > 0


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
        with pytest.raises(UserError, match=r"loss is nan at step 8, in rows \[\d+, .*not-finite.json"):
            run(spec, store, tmp_path)
    assert step_reached(tmp_path) == 6


def test_two_processes_name_the_whole_batch_that_broke_the_loss(store: Store, tmp_path: Path) -> None:
    spec = spec_of(learning_rate=1e30)
    process = begin(spec, store, tmp_path, *TWO_PROCESSES)
    _, stderr = process.communicate()
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, stderr
    found = json.loads((tmp_path / "checkpoints" / "not-finite.json").read_text())
    step = found["step"]
    batches = Batches(store, ["x"], spec.batch, spec.seed, training_rows(store.rows, spec.holdout))
    assert found["rows"] == next(batches.iterate(step - 1, step)).rows.tolist()
    assert f"at step {step}, in rows {found['rows'][:8]} and others" in errors[0]


def stop_after(step: int) -> Callable[[Trainer, Batch], None]:
    def stop(trainer: Trainer, batch: Batch) -> None:
        if trainer.step == step:
            raise StoppedError

    return stop


def test_other_settings_do_not_continue_a_run(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    anchored = {"anchors": {"source": "clusters", "count": 2}}
    job = replace(job_of(spec_of(**anchored), tmp_path), anchors=tmp_path / "anchors.safetensors")
    make_anchors(job.spec, store, tmp_path / "anchors.safetensors")
    with monkeypatch.context() as patched:
        watch_steps(patched, stop_after(3))
        with pytest.raises(StoppedError):
            train([job], store.path, every=0)
    with pytest.raises(UserError, match=r"other settings \(spec.learning_rate\)"):
        train([replace(job, spec=spec_of(**anchored, learning_rate=1e-3))], store.path)
    make_anchors(spec_of(**anchored, seed=1), store, tmp_path / "anchors.safetensors")
    with pytest.raises(UserError, match=r"other settings \(anchors\)"):
        train([job], store.path)
    assert step_reached(tmp_path) == 2


def test_a_full_disk_is_one_clear_line_and_loses_nothing(store: Store, tmp_path: Path) -> None:
    """Where the log fills it, and where the finished dictionary does."""
    spec = spec_of(tokens=128 * 10)
    undisturbed = run(spec, store, tmp_path / "undisturbed")
    for limit, says in ((500, "metrics.jsonl: cannot be written"), (5_000, "output: cannot be written")):
        with file_size_limit(limit), pytest.raises(UserError, match=says):
            run(spec, store, tmp_path / "full")
    with file_size_limit(25_000):
        assert_same(run(spec, store, tmp_path / "full"), undisturbed)
