"""A harvest that is killed, split, repeated or refused: the bytes are those of an undisturbed one, or nothing is."""

import multiprocessing
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from harvest.errors import UserError
from harvest.files import read_json
from harvest.run import harvest
from harvest.store import Store
from harvest.writer import StoreWriter
from tests.arithmetic import Arithmetic

SHARDS = 16


def run(folder: Path, source: Arithmetic | None = None, part: tuple[int, int] = (1, 1)) -> None:
    harvest(source or Arithmetic(), folder / "activations.zarr", folder / "activations.manifest.json", {}, part)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file's bytes, but for the lock, which is empty."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if path.name != ".lock" or path.stat().st_size}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    run(folder)
    assert Store(folder / "activations.zarr").finished.tolist() == [True] * SHARDS
    return contents(folder)


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes that start at once: they are forked from one that has imported everything and started no thread."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["harvest.run", "tests.arithmetic"])
    return context


def run_until(operation: int, folder: Path) -> None:
    """Harvest, but die by SIGKILL right before the n-th change to the file system."""
    left = operation

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in ("os.rename", "os.link", "os.mkdir", "os.remove") or (
            event == "open" and arguments[2] & os.O_CREAT
        ):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    run(folder)


def died(process: ForkServerProcess) -> bool:
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def test_killed_before_any_file_operation(
    tmp_path: Path, processes: ForkServerContext, undisturbed: dict[str, bytes]
) -> None:
    """Each time the same command follows, in this process, and the store ends up as if nothing had happened."""
    creation, shards = range(1, 80, 7), range(80, 700, 77)
    killed = 0
    for operation in [*creation, *shards]:
        folder = tmp_path / str(operation)
        folder.mkdir()
        killed += died(processes.Process(target=run_until, args=(operation, folder)))
        run(folder)
        assert contents(folder) == undisturbed, operation
        shutil.rmtree(folder)
    assert killed > 15


def test_killed_again_and_again(tmp_path: Path, processes: ForkServerContext, undisturbed: dict[str, bytes]) -> None:
    """At moments of the clock, each run continuing what the one before left."""
    moments = np.random.default_rng(2)
    kills = 0
    while True:
        process = processes.Process(target=run, args=(tmp_path, Arithmetic(seconds=0.02)))
        process.start()
        process.join(moments.uniform(0.1, 0.6))
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
        kills += 1
    assert process.exitcode == 0
    assert kills > 0
    assert contents(tmp_path) == undisturbed


class Watched(Arithmetic):
    """Remembers which rows it was asked for."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.asked: list[int] = []

    def read_sites(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        self.asked.append(start)
        return super().read_sites(start, stop)


def test_only_unfinished_shards_are_computed_again(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    """Shards whose marker is gone, the last and shorter one among them, are written over what they had left."""
    run(tmp_path)
    lost = [0, 7, SHARDS - 1]
    for shard in lost:
        (tmp_path / f"activations.zarr/statistics/rows/c/{shard}").unlink()
    source = Watched()
    run(tmp_path, source)
    assert [start // 20 for start in source.asked] == lost
    assert contents(tmp_path) == undisturbed
    source = Watched()
    run(tmp_path, source)
    assert source.asked == []


@pytest.mark.parametrize("parts", [3, SHARDS + 3])
def test_parts_give_the_same_bytes_as_one(tmp_path: Path, parts: int, undisturbed: dict[str, bytes]) -> None:
    for index in np.random.default_rng(parts).permutation(parts) + 1:
        assert not (tmp_path / "activations.manifest.json").exists()
        run(tmp_path, part=(int(index), parts))
    assert contents(tmp_path) == undisturbed


def test_parts_at_the_same_time(tmp_path: Path, processes: ForkServerContext, undisturbed: dict[str, bytes]) -> None:
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        running = [processes.Process(target=run, args=(folder, Arithmetic(), (i, 3))) for i in (1, 2, 3)]
        for process in running:
            process.start()
        for process in running:
            process.join()
        assert [process.exitcode for process in running] == [0, 0, 0]
        assert contents(folder) == undisturbed


@pytest.fixture
def running(tmp_path: Path, processes: ForkServerContext) -> Iterator[None]:
    """A harvest into `tmp_path` that has begun to write and will not end by itself."""
    process = processes.Process(target=run, args=(tmp_path, Arithmetic(seconds=5)))
    process.start()
    marker = tmp_path / "activations.zarr/vocabulary/bytes/c/0"
    deadline = time.monotonic() + 30
    while not marker.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.2)
    yield
    process.kill()
    process.join()


@pytest.mark.usefixtures("running")
def test_a_second_harvest_is_told_of_the_first(tmp_path: Path) -> None:
    before = contents(tmp_path)
    with pytest.raises(UserError, match="another harvest is writing these shards; wait for it or stop it"):
        run(tmp_path)
    assert contents(tmp_path) == before


def test_other_facts_are_refused_with_what_differs(tmp_path: Path) -> None:
    run(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"seed: it has 0, the config says 5. Give this harvest another name"):
        run(tmp_path, Arithmetic(seed=5))
    with pytest.raises(UserError, match='dtype: it has "bfloat16", the config says "float32"'):
        run(tmp_path, Arithmetic(dtype="float32"))
    with pytest.raises(UserError, match="rows: it has 320, the config says 321"):
        run(tmp_path, Arithmetic(321))
    assert contents(tmp_path) == before


def test_too_little_disk_is_found_before_the_first_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 320 rows of 2·(3 + 8) bytes of activations and 4 + 4 + 4·5 of columns, and a table of 9 bytes; in each of 16
    # shards statistics, 8·(1 + 7 + 17) bytes, and the indices of two sites with as many chunks as make 20 rows
    store = StoreWriter(tmp_path / "activations.zarr", Arithmetic(), {})
    chunks = store.layout.shard_rows // store.layout.chunk_rows
    needed = 320 * (22 + 28) + 9 + 16 * (8 * 25 + 2 * (16 * chunks + 4))
    available: Callable[[Any], Usage] = lambda _path: Usage(10**9, 10**9, needed - 1)  # noqa: E731
    monkeypatch.setattr(shutil, "disk_usage", available)
    with pytest.raises(UserError, match=r"needs 19.8 kB more, 19.8 kB are free in .*; take fewer tokens or sites"):
        run(tmp_path / "not" / "there")
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_store_needs_only_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, part=(1, 2))
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(10**9, 10**9, 9000))
    run(tmp_path, part=(2, 2))
    assert (tmp_path / "activations.manifest.json").exists()


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    folder = tmp_path / "file" / "folder"
    with pytest.raises(UserError, match=rf"^output folder {re.escape(str(folder))}: cannot be written \(\w"):
        run(folder)
    assert contents(tmp_path) == {"file": b"text"}


def test_what_is_no_store_is_not_touched(tmp_path: Path) -> None:
    folder = tmp_path / "activations.zarr"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="the folder exists and is no store; give another name"):
        run(tmp_path)
    assert contents(tmp_path) == {"activations.zarr/thesis.tex": b"years of work"}
    shutil.rmtree(folder)
    folder.write_text("a file")
    with pytest.raises(UserError, match="the folder exists and is no store; give another name"):
        run(tmp_path)
    assert contents(tmp_path) == {"activations.zarr": b"a file"}


def test_no_rows(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the corpus is empty"):
        run(tmp_path, Arithmetic(0))
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_tells_what_the_store_holds(tmp_path: Path) -> None:
    source = Arithmetic()
    run(tmp_path, source)
    manifest = read_json(tmp_path / "activations.manifest.json", "manifest")
    store = Store(tmp_path / "activations.zarr")
    assert (manifest["rows"], manifest["shards"], manifest["dtype"]) == (320, SHARDS, "bfloat16")
    assert manifest["fingerprint"] == store.fingerprint
    assert manifest["source"].items() >= source.facts.items()
    assert manifest["labels"] == {"parity": 2}
    for site, values in source.read_sites(0, 320).items():
        x_ND = values.double()
        assert manifest["sites"][site]["width"] == x_ND.shape[1]
        assert manifest["sites"][site]["mean_norm"] == pytest.approx(float(x_ND.norm(dim=1).mean()))
        assert manifest["sites"][site]["total_variance"] == pytest.approx(float(x_ND.var(0, correction=0).sum()))


def test_what_will_be_done_is_said_before_the_first_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path)
    said = capsys.readouterr().out
    assert re.search(r"activations.zarr: 320 of 320 rows to harvest, 2 sites, 19.8 kB in all, .+ free, about", said)
