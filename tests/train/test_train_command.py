"""`python -m train run`: a user's mistake is one clear line, exit status 2, and nothing left behind."""

import runpy
import sys
from pathlib import Path

import pytest
from torch import Tensor

from harvest.errors import UserError
from harvest.store import Store
from tests.synthetic import Synthetic, synthetic_store
from tests.training import run, spec_of

GOOD_KEYS = ["reads: [x]", "latents: 64", "sparsity: {topk: {l0: 3}}", "tokens: 256", "batch: 128"]
GOOD = ", ".join(GOOD_KEYS)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (GOOD.replace("[x]", "[z]"), ["z: no such site", "it has x, y"]),
        (GOOD + ", token: 256", ["token: unknown key", "tokens"]),
        (GOOD.replace("latents: 64, ", ""), ["latents: missing"]),
        (GOOD.replace("latents: 64", "latents: many"), ["latents", "many"]),
        (GOOD.replace("latents: 64", "latents: 2"), ["l0 3", "latents 2"]),
        (GOOD.replace("latents: 64", "latents: -1"), ["latents", "-1"]),
        (GOOD.replace("topk", "topp"), ["topp", "topk, batchtopk"]),
        (GOOD.replace("l0: 3", "l0: 2.5"), ["sparsity.topk.l0", "2.5", "whole number"]),
        (GOOD.replace("{topk: {l0: 3}}", "{topk: {l0: 3}, relu: {l0: 3}}"), ["sparsity", "exactly one"]),
        (GOOD.replace("batch: 128", "batch: 7700"), ["batch: 7700", "7600 rows"]),
        (GOOD + ", matryoshka: {}", ["matryoshka", "exactly one"]),
        (GOOD + ", matryoshka: {prefixes: [0.25, 0.5]}", ["matryoshka", "end with 1"]),
        (GOOD + ", matryoshka: {levels: [1, 0.5]}", ["matryoshka", "must grow"]),
        (GOOD + ", holdout: 0.99999", ["holdout: 0.99999", "8000 rows"]),
        (GOOD + ", holdout: 1.5", ["holdout", "1.5"]),
        (GOOD + ", learning_rate: 0", ["learning_rate", "0"]),
        (GOOD + ", seed: [", ["is not YAML"]),
    ],
)
def test_a_bad_spec_is_one_line(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], spec: str, says: list[str]
) -> None:
    refused(tmp_path, capsys, ["{" + spec + "}", "--store", str(store.path)], says)


def test_a_bad_path_is_one_line(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = "{" + GOOD + "}"
    refused(tmp_path, capsys, [str(tmp_path / "no.yaml"), "--store", str(store.path)], ["no.yaml", "No such file"])
    refused(tmp_path, capsys, [good, "--store", str(tmp_path / "no.zarr")], ["no.zarr", "run the harvest first"])
    (tmp_path / "file").write_text("")
    arguments = [good, "--store", str(store.path), "--output", str(tmp_path / "file" / "below")]
    refused(tmp_path, capsys, arguments, [str(tmp_path / "file" / "below"), "cannot be written"])


@pytest.mark.parametrize(
    ("second", "options", "says"),
    [
        ("batch: 64", [], ["batch: 128 for ", "/0 and 64 for ", "/1: dictionaries that are trained in one pass"]),
        ("seed: 3", [], ["seed: 0 for ", " and 3 for "]),
        ("holdout: 0.5", [], ["holdout: 0.05 for ", " and 0.5 for "]),
        ("tokens: 512", [], ["tokens: 256 for ", " and 512 for "]),
        ("skip: false", ["--output", "2"], ["--output: 3 given for 2 dictionaries; give one for each, in their order"]),
        ("skip: false", ["--anchors", "a"], ["--anchors: 1 given for 0 dictionaries with anchors"]),
        ("anchors: {source: clusters, count: 1}", [], ["--anchors: 0 given for 1 dictionaries with anchors"]),
        ("skip: false", ["--memory", "0"], ["--memory: 0 MiB is too little for batches of 128 rows", "at least 2"]),
    ],
)
def test_bad_passes_are_one_line(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], second: str, options: list[str], says: list[str]
) -> None:
    other = ", ".join({key.split(":")[0]: key for key in [*GOOD_KEYS, second]}.values())
    arguments = ["{" + GOOD + "}", "{" + other + "}", "--store", str(store.path), "--checkpoints", str(tmp_path / "c")]
    arguments += ["--output", str(tmp_path / "0"), "--output", str(tmp_path / "1"), *options]
    refused(tmp_path, capsys, arguments, says)


def test_folders_of_their_own(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = ["--output", str(tmp_path / "0")]
    arguments = ["{" + GOOD + "}"] * 2 + [
        "--store",
        str(store.path),
        "--checkpoints",
        str(tmp_path / "c"),
        *same,
        *same,
    ]
    refused(tmp_path, capsys, arguments, ["--output: ", "is given twice; each dictionary needs its own"])


def refused(folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: list[str]) -> None:
    """Exit status 2, one line that says all of it, and nothing left behind."""
    before = sorted(folder.rglob("*"))
    if "--output" not in arguments:
        arguments = [*arguments, "--output", str(folder / "output")]
    arguments = ["train", "run", *arguments, "--checkpoints", str(folder / "checkpoints")]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as caught:
            runpy.run_module("train", run_name="__main__")
    assert caught.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    for part in says:
        assert part in lines[0]
    assert sorted(folder.rglob("*")) == before


def test_an_unfinished_store_is_refused(tmp_path: Path) -> None:
    class Broken(Synthetic):
        def read_sites(self, start: int, stop: int) -> dict[str, Tensor]:
            if start > 0:
                raise KeyboardInterrupt
            return super().read_sites(start, stop)

    with pytest.raises(KeyboardInterrupt):
        synthetic_store(tmp_path, Broken(rows=200))
    with pytest.raises(UserError, match="is not finished; run the harvest again"):
        run(spec_of(), Store(tmp_path / "activations.zarr"), tmp_path)
    assert not (tmp_path / "output").exists()
