import importlib
import operator
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster
from safetensors.numpy import load_file

from analyze import encoded
from analyze.activity import measure
from analyze.recovery import measure_recovery
from harvest.bench.config import BenchSpec
from harvest.bench.source import BenchSource
from harvest.errors import UserError
from harvest.progress import progress
from harvest.store import Store
from harvest.tasks import compute, merged
from tests.texts import make_dictionary, make_store, words
from train.anchors import label_sums


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Two workers, each a process with one thread, that is started again where it dies."""
    workers = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(**workers, scheduler_port=0) as started:
        yield started


@pytest.fixture(params=["threads", "cluster"])
def scheduler(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "threads":
        yield request.param
        return
    address = request.getfixturevalue("cluster").scheduler_address
    with dask.config.set({"scheduler-address": address}):
        yield request.param


def on_workers(cluster: LocalCluster, what: Any) -> None:
    with Client(cluster.scheduler_address, set_as_default=False) as client:
        client.run(what)


def joined(numbers: list[int]) -> Any:
    one = dask.delayed(lambda number: [number], pure=False)
    return merged([one(number) for number in numbers], operator.add)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8])
def test_a_tree_keeps_the_order(scheduler: str, count: int) -> None:
    assert compute([joined([*range(count)])]) == [[*range(count)]]


def test_results_are_in_the_order_of_the_tasks(scheduler: str) -> None:
    square = dask.delayed(lambda number: number**2, pure=False)
    tasks = [square(number) for number in range(20)]
    with progress(20, "squares") as bar:
        assert compute(tasks, bar=bar, amounts={task.key: 1 for task in tasks}) == [n**2 for n in range(20)]
        assert bar.n == 20


def test_a_users_mistake_in_a_task_is_said(scheduler: str) -> None:
    def refuse() -> None:
        raise UserError("rows: 0: none")

    with pytest.raises(UserError, match="rows: 0: none"):
        compute([dask.delayed(refuse, pure=False)()])


def test_no_scheduler_at_the_address() -> None:
    settings = {"scheduler-address": "tcp://127.0.0.1:9", "distributed.comm.timeouts.connect": "500ms"}
    with dask.config.set(settings), pytest.raises(UserError, match=r"dask: tcp://127\.0\.0\.1:9: no scheduler answers"):
        compute([joined([1])])


def test_every_pass_gives_what_threads_give(
    cluster: LocalCluster, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encoding, activity, labels, class means, the score; a worker dies in the middle, and another takes its part."""
    store = make_store(words(), tmp_path)
    make_dictionary(tmp_path / "dictionary", store, ["in"], ["in"])
    monkeypatch.setattr(encoded, "BATCH_PLACES", 30 * 16)
    monkeypatch.setattr(encoded, "BLOCK_PLACES", 4 * 50)
    measure(tmp_path / "dictionary", store.path, tmp_path / "threads")
    sums = label_sums(store, ["in"], ["language"], store.rows)
    died = tmp_path / "died"

    def prepare() -> None:
        importlib.import_module("analyze.encoded").BATCH_PLACES = 30 * 16
        activity = importlib.import_module("analyze.activity")
        block_of = activity.measure_block

        def measure_block(encoded: Any, place: Any, number: int, unit: float) -> Any:
            if number == 5 and not died.exists():
                died.touch()
                os._exit(1)
            return block_of(encoded, place, number, unit)

        activity.measure_block = measure_block

    on_workers(cluster, prepare)
    monkeypatch.chdir(tmp_path)  # workers are elsewhere
    with dask.config.set({"scheduler-address": cluster.scheduler_address}):
        measure(pathlib.Path("dictionary"), pathlib.Path("activations.zarr"), pathlib.Path("cluster"))
        again = label_sums(Store("activations.zarr"), ["in"], ["language"], store.rows)
    assert died.exists()
    files = [path.relative_to(tmp_path / "threads") for path in (tmp_path / "threads").rglob("*.*")]
    assert len(files) == 6
    for file in files:
        ours, theirs = (tmp_path / scheduler / file for scheduler in ("threads", "cluster"))
        if file.suffix == ".safetensors":
            for name, tensor in load_file(ours).items():
                np.testing.assert_allclose(load_file(theirs)[name], tensor, rtol=1e-6, err_msg=name)
        else:
            assert ours.exists() == theirs.exists()
    np.testing.assert_allclose(again["language"][0], sums["language"][0], rtol=1e-12)
    assert np.array_equal(again["language"][1], sums["language"][1])


def test_recovery_gives_what_threads_give(cluster: LocalCluster, tmp_path: pathlib.Path) -> None:
    spec = {"features": 24, "rows": 3000, "sparsity": 0.8, "interference": 0.9, "sites": {"in": 6}}
    store = make_store(BenchSource(BenchSpec.model_validate(spec)), tmp_path)
    make_dictionary(tmp_path / "dictionary", store, ["in"], ["in"])
    measure_recovery(tmp_path / "dictionary", store.path, None, tmp_path / "threads")
    with dask.config.set({"scheduler-address": cluster.scheduler_address}):
        measure_recovery(tmp_path / "dictionary", store.path, None, tmp_path / "cluster")
    ours, theirs = (load_file(tmp_path / name / "recovery.safetensors") for name in ("threads", "cluster"))
    for name, array in ours.items():
        np.testing.assert_allclose(theirs[name], array, rtol=1e-12, err_msg=name)
