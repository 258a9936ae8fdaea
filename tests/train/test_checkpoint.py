"""A run's checkpoints: whole or not there, the newest wins, and never of another run."""

import errno
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import train.checkpoint
from harvest.errors import UserError
from train.checkpoint import Checkpoints

IDENTITY = {"spec": {"latents": 8, "sparsity": {"topk": {"l0": 2.0}}, "reads": ["x"]}, "store": "abc"}


def at(step: int) -> tuple[int, dict[str, Tensor], dict[str, Any]]:
    return step, {"weights": torch.full((50, 3), float(step)).T}, {"step": step, "metrics_bytes": 10 * step}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def step_of(saved: Checkpoints) -> int:
    found = saved.newest()
    assert found is not None
    tensors, facts = found
    assert torch.equal(tensors["weights"], torch.full((3, 50), float(facts["step"]))), "tensors and facts of one step"
    assert facts["metrics_bytes"] == 10 * facts["step"]
    return int(facts["step"])


def test_none_at_first(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "not there", IDENTITY).newest() is None
    assert Checkpoints(tmp_path, IDENTITY).newest() is None


def test_the_newest_comes_back_and_the_older_go(tmp_path: Path) -> None:
    saved = Checkpoints(tmp_path / "new" / "folder", IDENTITY)
    for step in (9, 10, 11, 1000):
        saved.save(*at(step))
        assert step_of(saved) == step
        assert names(saved.folder) == [f"step-{step:09d}"]
    saved.remove()
    assert not saved.folder.exists()


def test_newest_is_by_number(tmp_path: Path) -> None:
    """Where a kill came after the newer was in place and before the older was gone."""
    for step in (99, 1000):
        other = Checkpoints(tmp_path / str(step), IDENTITY)
        other.save(*at(step))
        (other.folder / f"step-{step:09d}").rename(tmp_path / f"step-{step:09d}")
        other.folder.rmdir()
    assert step_of(Checkpoints(tmp_path, IDENTITY)) == 1000


@pytest.mark.parametrize("left", [[], ["state.safetensors"], ["state.safetensors", "state.json"]])
def test_a_half_written_one_is_ignored_and_swept(tmp_path: Path, left: list[str]) -> None:
    saved = Checkpoints(tmp_path, IDENTITY)
    saved.save(*at(1))
    partial = tmp_path / "step-000000002.partial"
    partial.mkdir()
    for name in left:
        (partial / name).write_bytes(b"half a fi")
    assert step_of(saved) == 1
    saved.save(*at(2))
    assert step_of(saved) == 2
    partial.mkdir()
    saved.save(*at(3))
    assert names(tmp_path) == ["step-000000003"]


def test_the_older_goes_only_when_the_newer_is_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a step of saving does, the folder holds a whole checkpoint before and after it."""
    saved = Checkpoints(tmp_path, IDENTITY)
    saved.save(*at(1))
    seen = []
    for module, name in [
        (train.checkpoint, "save_file"),
        (train.checkpoint, "write_json"),
        (os, "fsync"),
        (shutil, "rmtree"),
        (Path, "rename"),
        (Path, "mkdir"),
    ]:
        original = getattr(module, name)

        def watched(*arguments: Any, original: Any = original, name: str = name, **options: Any) -> Any:
            seen.append((name, step_of(Checkpoints(tmp_path, IDENTITY))))
            result = original(*arguments, **options)
            seen.append((name, step_of(Checkpoints(tmp_path, IDENTITY))))
            return result

        monkeypatch.setattr(module, name, watched)
    saved.save(*at(2))
    steps = [step for _, step in seen]
    assert steps == sorted(steps)
    assert ("rename", 1) in seen, "the old one was there until"
    assert ("rename", 2) in seen, "the new one came"
    assert {name for name, _ in seen} == {"save_file", "write_json", "fsync", "rmtree", "rename", "mkdir"}


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    Checkpoints(tmp_path, IDENTITY).save(*at(5))
    spec = IDENTITY["spec"]
    assert isinstance(spec, dict)
    for identity, named in [
        ({**IDENTITY, "store": "other"}, "(store)"),
        ({**IDENTITY, "spec": {**spec, "latents": 9}}, "(spec.latents)"),
        ({**IDENTITY, "spec": {**spec, "sparsity": {"topk": {"l0": 3.0}}}}, "(spec.sparsity.topk.l0)"),
        ({**IDENTITY, "spec": {**spec, "latents": 9}, "store": "other"}, "(spec.latents, store)"),
        ({**IDENTITY, "spec": {**spec, "seed": 1}}, "(spec.seed)"),
        ({"store": "abc", "spec": {"latents": 8, "reads": ["x"]}}, "(spec.sparsity)"),
    ]:
        with pytest.raises(UserError) as caught:
            Checkpoints(tmp_path, identity).newest()
        assert named in str(caught.value)
        assert str(tmp_path) in str(caught.value)
    assert step_of(Checkpoints(tmp_path, IDENTITY)) == 5, "and they are still there for the right settings"


def test_settings_are_compared_as_json(tmp_path: Path) -> None:
    """What becomes equal in a file (tuples and lists) is no difference."""
    Checkpoints(tmp_path, {"reads": ("x", "y")}).save(*at(1))
    assert step_of(Checkpoints(tmp_path, {"reads": ["x", "y"]})) == 1


def test_nan_never_replaces_a_good_one(tmp_path: Path) -> None:
    saved = Checkpoints(tmp_path, IDENTITY)
    saved.save(*at(1))
    step, tensors, facts = at(2)
    tensors["weights"][1, 3] = torch.nan
    with pytest.raises(UserError, match="weights hold NaN after step 2"):
        saved.save(step, {**tensors, "counts": torch.zeros(3, dtype=torch.int64)}, facts)
    assert step_of(saved) == 1


def test_a_full_disk_keeps_the_last_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = Checkpoints(tmp_path, IDENTITY)
    saved.save(*at(1))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("save_file", "write_json"):
        with monkeypatch.context() as patched:
            patched.setattr(train.checkpoint, name, full)
            refused(saved, "No space left on device")
    saved.save(*at(3))
    assert step_of(saved) == 3


def test_a_write_that_really_fails_keeps_the_last_good_one(tmp_path: Path) -> None:
    """The system refuses to let a file grow further, as it does when a disk is full."""
    saved = Checkpoints(tmp_path, IDENTITY)
    saved.save(*at(1))
    with file_size_limit(300):
        refused(saved, "File too large")
    saved.save(*at(3))
    assert step_of(saved) == 3


def refused(saved: Checkpoints, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        saved.save(*at(2))
    assert "step-000000002" in str(caught.value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert names(saved.folder) == ["step-000000001"]
    assert step_of(saved) == 1


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
