"""Stores in an object storage, against the same on disk: a real S3 server, and what is said when it does not answer."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from analyze.activity import measure
from analyze.experiment import Experiment, load_experiment
from harvest.errors import UserError
from harvest.files import read_json
from harvest.joined import open_store
from harvest.object_store import UrlStore
from harvest.overview import describe_store
from harvest.run import harvest
from harvest.store import Store
from tests.arithmetic import Arithmetic
from tests.harvest.test_command_line import lines, status_of
from tests.harvest.test_joined import Read
from tests.harvest.test_run import SHARDS, contents
from tests.moto_server import KEY, SECRET, moto_server, objects, using
from tests.texts import words
from tests.training import job_of, spec_of
from train.loop import train


@pytest.fixture(scope="module")
def variables() -> Iterator[dict[str, str]]:
    with moto_server() as variables:
        yield variables


@pytest.fixture
def s3(variables: dict[str, str], request: pytest.FixtureRequest) -> Iterator[str]:
    """A prefix of its own for the test, `bucket/…`."""
    with using(variables):
        yield f"bucket/{request.node.name.partition('[')[0]}"


def run(folder: Path, store: str | Path, source: Any = None, part: tuple[int, int] = (1, 1)) -> None:
    harvest(source or Arithmetic(), store, folder / "activations.manifest.json", {}, part)


def on_disk(folder: Path, source: Arithmetic | None = None) -> dict[str, bytes]:
    """What an undisturbed harvest writes: the store's files, and the manifest beside it."""
    run(folder / "disk", folder / "disk/activations.zarr", source)
    return contents(folder / "disk")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """That of `Arithmetic(ROWS)`."""
    return on_disk(tmp_path_factory.mktemp("small"), Arithmetic(ROWS))


ROWS = 5
"""Each is a shard of 12 objects."""


def stored(prefix: str, folder: Path) -> dict[str, bytes]:
    return {f"activations.zarr/{key}": data for key, data in objects(prefix).items()} | contents(folder)


def test_every_object_is_the_file_on_disk(s3: str, tmp_path: Path) -> None:
    wanted = on_disk(tmp_path)
    run(tmp_path / "s3", f"s3://{s3}")
    assert stored(s3, tmp_path / "s3") == wanted
    store, source = Store(f"s3://{s3}/"), Arithmetic()
    for site, values in source.read_sites(0, source.rows).items():
        assert torch.equal(store.read(site, 0, source.rows), values)
        assert torch.equal(store.read(site, 17, 41), values[17:41])
        assert torch.equal(store.read(site, 40, 41), values[40:41])
    assert store.labels == {"parity": ["even", "odd"]}
    anyone = zarr.open_group(f"s3://{s3}", mode="r")
    assert np.array_equal(anyone["rows/document"][:], np.arange(320) // 7)
    run(tmp_path / "s3", f"s3://{s3}")
    with pytest.raises(UserError, match=f"store s3://{s3} was harvested from something else: seed: it has 0, the con"):
        run(tmp_path / "s3", f"s3://{s3}", Arithmetic(seed=5))
    assert stored(s3, tmp_path / "s3") == wanted


def test_what_is_no_store_is_not_touched(s3: str, tmp_path: Path) -> None:
    import fsspec

    fsspec.filesystem("s3").pipe_file(f"{s3}/activations.zarr/thesis.tex", b"years of work")
    with pytest.raises(UserError, match="the folder exists and is no store; give another name"):
        run(tmp_path, f"s3://{s3}/activations.zarr")
    assert objects(s3) == {"activations.zarr/thesis.tex": b"years of work"}


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes that start at once: they are forked from one that has imported everything and started no thread."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["harvest.run", "tests.arithmetic", "s3fs"])
    return context


def run_until(write: int, variables: dict[str, str], *arguments: Any) -> None:
    """Harvest, but die by SIGKILL when the n-th object is about to be written."""
    os.environ.update(variables)
    original, left = UrlStore.set, write

    async def count(self: UrlStore, *arguments: Any, **keywords: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        await original(self, *arguments, **keywords)

    UrlStore.set = count  # type: ignore[method-assign]
    run(*arguments)


def test_killed_before_any_write(
    s3: str, variables: dict[str, str], tmp_path: Path, processes: ForkServerContext, small: dict[str, bytes]
) -> None:
    """Each time the same command follows, and what is stored ends up as if nothing had happened."""
    for write in (14, 70):
        folder, prefix = tmp_path / str(write), f"{s3}/{write}"
        folder.mkdir()
        process = processes.Process(
            target=run_until, args=(write, variables, folder, f"s3://{prefix}", Arithmetic(ROWS))
        )
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert len(objects(prefix)) < len(small) - 1
        run(folder, f"s3://{prefix}", Arithmetic(ROWS))
        assert stored(prefix, folder) == small, write


def test_killed_again_and_again(
    s3: str, variables: dict[str, str], tmp_path: Path, processes: ForkServerContext, small: dict[str, bytes]
) -> None:
    """At moments of the clock, requests under way, each run continuing what the one before left."""
    moments, kills = np.random.default_rng(2), 0
    while True:
        arguments = (0, variables, tmp_path, f"s3://{s3}", Arithmetic(ROWS, seconds=0.4))
        process = processes.Process(target=run_until, args=arguments)
        process.start()
        process.join(moments.uniform(1.5, 3) * 1.3**kills)  # later each time: a busy machine gets on too
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
        kills += 1
    assert process.exitcode == 0
    assert kills > 0
    assert stored(s3, tmp_path) == small


def test_parts_at_the_same_time(
    s3: str, variables: dict[str, str], tmp_path: Path, processes: ForkServerContext, small: dict[str, bytes]
) -> None:
    """Nothing is locked: both create the store, and each writes its own shards."""
    arguments = [(0, variables, tmp_path, f"s3://{s3}", Arithmetic(ROWS), (i, 2)) for i in (1, 2)]
    running = [processes.Process(target=run_until, args=each) for each in arguments]
    for process in running:
        process.start()
    for process in running:
        process.join()
    assert [process.exitcode for process in running] == [0, 0]
    assert stored(s3, tmp_path) == small


def test_another_part_created_the_store_meanwhile(
    tmp_path: Path, small: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = zarr.open_group

    def slower(*arguments: Any, mode: Any, **keywords: Any) -> zarr.Group:
        group = original(*arguments, mode=mode, **keywords)
        if mode == "a":
            raise zarr.errors.ContainsGroupError("it was not there a moment ago")
        return group

    monkeypatch.setattr(zarr, "open_group", slower)
    run(tmp_path, tmp_path / "activations.zarr", Arithmetic(ROWS))
    assert contents(tmp_path) == small


def test_trained_and_measured_to_the_byte_as_on_disk(s3: str, tmp_path: Path) -> None:
    stores: dict[str, str | Path] = {"s3": f"s3://{s3}", "disk": tmp_path / "activations.zarr"}
    spec, kept = spec_of(reads=["in"], tokens=6400, batch=64, sparsity={"batchtopk": {"l0": 3}}), {}
    for name, store in stores.items():
        folder = tmp_path / name
        run(tmp_path, store, words(documents=80))
        train([job_of(spec, folder)], store)
        measure(folder / "output", store, folder / "measured")
        found = contents(folder)
        del found["output/training.json"]  # has times
        metrics = [json.loads(line) for line in found.pop("output/metrics.jsonl").splitlines()]
        kept[name] = found, [{k: v for k, v in line.items() if "second" not in k} for line in metrics]
    assert {"output/sae_weights.safetensors", "output/cfg.json", "measured/summary.json"} <= kept["s3"][0].keys()
    assert kept["s3"] == kept["disk"]


def test_stores_read_as_one(s3: str, tmp_path: Path) -> None:
    """Called after their folders, wherever they are."""
    places = [f"s3://{s3}/base/activations.zarr", tmp_path / "chat/activations.zarr"]
    for place, scale in zip(places, (1.0, 3.0), strict=True):
        run(tmp_path, place, Read("c", scale))
    for joined in (open_store(places), open_store(places[::-1])):
        assert sorted(joined.widths) == ["base/in", "base/out", "chat/in", "chat/out"]
        assert torch.equal(3 * joined.read("base/in", 5, 90), joined.read("chat/in", 5, 90))


def test_in_memory(tmp_path: Path) -> None:
    """Any file system of fsspec; this one lives as long as the process."""
    run(tmp_path, "memory://anywhere/h/activations.zarr")
    assert contents(tmp_path).keys() == {"activations.manifest.json"}
    store = Store("memory://anywhere/h/activations.zarr")
    assert store.finished.tolist() == [True] * SHARDS
    assert describe_store(store).startswith("store memory://anywhere/h/activations.zarr\n")
    assert torch.equal(store.read("layers.1.b", 3, 300), Arithmetic().read_sites(3, 300)["layers.1.b"])


SECRETS = ("AKIA", "NOBODY", "may-see")
BENCH = '{"features": 20, "sites": {"p": 16}, "rows": 8, "sparsity": 0.9, "interference": 0.3}'


@pytest.mark.parametrize(
    ("url", "changes", "parts"),
    [
        ("s3://no-such-bucket/x", {}, ["store s3://no-such-bucket/x: cannot be", "bucket does not exist"]),
        (
            "s3://bucket/x",
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_MAX_ATTEMPTS": "1"},
            ["s3://bucket/x: cannot be", "not connect"],
        ),
        ("s3://bucket/x", {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, ["Unable to locate credentials"]),
        (
            f"s3://{KEY}:{SECRET}@bucket/x",
            {},
            ["store: s3://***@bucket/x", "AWS_SECRET_ACCESS_KEY", "_ENDPOINT_URL"],
        ),
        (f"s3://bucket/x?secret={SECRET}", {}, ["store: s3://bucket/x?***", "AWS_SECRET_ACCESS_KEY"]),
        ("gs://bucket/x", {}, ["gs://bucket/x", "gcsfs", "pip install -e '.[gcs]'"]),
        ("ess3://bucket/x", {}, ["ess3://bucket/x", "Protocol not known: ess3"]),
        ("file:///tmp/x", {}, ["file:///tmp/x", "a folder is given as a path: /tmp/x"]),
    ],
)
@pytest.mark.parametrize("command", [["inspect"], ["bench", BENCH, "--store"]])
def test_mistakes_are_one_line_that_keeps_the_secret(
    url: str,
    changes: dict[str, str],
    parts: list[str],
    command: list[str],
    variables: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if url.startswith("gs:"):
        monkeypatch.setitem(sys.modules, "gcsfs", None)
    with using({name: value for name, value in {**variables, **changes}.items() if value}):
        assert status_of(*command, url) == 2
    out, errors = capsys.readouterr()
    (said,) = lines(errors)
    assert said.startswith("error: ")
    for part in parts:
        assert part in said
    assert not any(secret in out + errors for secret in SECRETS)


def test_an_endpoint_that_has_credentials_keeps_them(variables: dict[str, str], tmp_path: Path) -> None:
    """In a process of its own: nothing that a library prints or warns of joins the one line."""
    endpoint = f"http://{KEY}:may-see@127.0.0.1:1"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    for arguments in (["inspect", "s3://bucket/x"], ["bench", BENCH, "--store", "s3://bucket/x"]):
        command = [sys.executable, "-m", "harvest", *arguments]
        where = {**clean, **variables, "AWS_ENDPOINT_URL": endpoint, "AWS_MAX_ATTEMPTS": "1"}
        done = subprocess.run(command, env=where, capture_output=True, text=True)
        assert done.returncode == 2
        (said,) = lines(done.stderr)
        assert said.startswith("error: store s3://bucket/x: cannot be read (")
        assert not any(secret in done.stdout + done.stderr for secret in SECRETS)


def test_the_command_says_what_is_there(s3: str, tmp_path: Path) -> None:
    arguments = [BENCH, "--store", f"s3://{s3}", "--manifest", str(tmp_path / "manifest.json")]
    for command in (["bench", *arguments], ["inspect", f"s3://{s3}"]):
        done = subprocess.run([sys.executable, "-m", "harvest", *command], capture_output=True, text=True)
        assert (done.returncode, lines(done.stderr)) == (0, [])
        assert f"s3://{s3}" in done.stdout
        assert not any(secret in done.stdout for secret in SECRETS)
    assert read_json(tmp_path / "manifest.json", "manifest")["rows"] == 8
    assert not any(secret in (tmp_path / "manifest.json").read_text() for secret in SECRETS)
    assert not any(secret.encode() in data for secret in SECRETS for data in objects(s3).values())


def experiment_of(stores: str) -> Experiment:
    dictionary = {"harvest": "h", "reads": ["p"], "latents": 64, "sparsity": {"topk": {"l0": 2}}, "tokens": 8}
    config = {"harvests": {"h": {"bench": json.loads(BENCH)}}, "dictionaries": {"d": dictionary}, "stores": stores}
    return load_experiment(config, "configs/mine.yaml")


def test_where_an_experiments_stores_go() -> None:
    assert experiment_of("memory://prefix/").stores == "memory://prefix"
    assert experiment_of("/scratch/stores/").stores == "/scratch/stores"
    with pytest.raises(UserError, match=r"^stores: s3://\*\*\*@bucket/x: .*AWS_ACCESS_KEY_ID") as raised:
        experiment_of(f"s3://{KEY}:{SECRET}@bucket/x")
    assert not any(secret in str(raised.value) for secret in SECRETS)
