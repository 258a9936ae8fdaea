"""`python -m harvest`: what it makes, and what it says of bad input: one line, exit status 2, nothing half-written."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from harvest.store import Store
from tests.tiny import tiny_clip, tiny_llama, tiny_open_clip, tiny_siglip, tiny_vit

SITES = '{"sites": ["layers.1.resid_post"]}'
CORPUS = '{"documentation": ["tqdm"], "tokens": 600, "context": 32}'


class Said(NamedTuple):
    status: int
    out: str
    errors: list[str]
    """Lines on stderr, progress bars aside."""


def lines(stderr: str) -> list[str]:
    return [line for line in re.split(r"[\r\n]+", stderr) if line.strip() and not re.match(r"(corpus|harvest): ", line)]


def status_of(*arguments: str | Path) -> int:
    """Run `python -m harvest` in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["harvest", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module("harvest", run_name="__main__")
    return int(ended.value.code or 0)


@pytest.fixture
def harvest(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str | Path) -> Said:
        capsys.readouterr()
        status = status_of(*arguments)
        captured = capsys.readouterr()
        return Said(status, captured.out, lines(captured.err))

    return run


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that takes 64 tokens, and corpora of 32 and of 65 tokens a sequence."""
    folder = tmp_path_factory.mktemp("prepared")
    tiny_llama(folder / "model")
    for name, context in (("corpus", 32), ("long", 65)):
        spec = json.dumps({**json.loads(CORPUS), "context": context})
        outputs = ["--output", folder / f"{name}.zarr", "--manifest", folder / f"{name}.json"]
        assert status_of("prepare", spec, "--model", folder / "model", *outputs) == 0
    return folder


def arguments_of(
    prepared: Path, output: Path, spec: str = SITES, model: str = "model", corpus: str = "corpus.zarr"
) -> list[str | Path]:
    places = ["--store", output / "activations.zarr", "--manifest", output / "activations.manifest.json"]
    model = model if model.startswith("{") else str(prepared / model)
    return ["run", spec, "--model", model, "--corpus", prepared / corpus, *places]


def refused(said: Said, *parts: str) -> None:
    assert said.status == 2
    assert len(said.errors) == 1, said.errors
    assert said.errors[0].startswith("error: ")
    for part in parts:
        assert part in said.errors[0]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_prepare_and_run(prepared: Path, tmp_path: Path, harvest: Any) -> None:
    facts = json.loads((prepared / "corpus.json").read_text())
    assert (facts["rows"], facts["complete"], facts["longest"]) == (600, True, 32)
    said = harvest(*arguments_of(prepared, tmp_path))
    assert (said.status, said.errors) == (0, [])
    assert json.loads((tmp_path / "activations.manifest.json").read_text())["rows"] == 600
    assert Store(tmp_path / "activations.zarr").widths == {"layers.1.resid_post": 24}
    (spec := tmp_path / "harvest.yaml").write_text("sites: [layers.1.resid_post]\n")
    before = files(tmp_path)
    assert harvest(*arguments_of(prepared, tmp_path, str(spec))).status == 0
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("what", "parts"),
    [
        ({"spec": '{"sites": ["layers.1.resid"]}'}, ["layers.1.resid: no such site", "resid_pre", "layers.3", "embed"]),
        ({"spec": '{"sites": ["layers.4.mlp_in"]}'}, ["layers.4.mlp_in: this model has layers 0 to 3"]),
        ({"spec": '{"sites": ["layers.130%.mlp_in"]}'}, ["layers.130%.mlp_in", "between 0% and 100%"]),
        ({"spec": '{"sites": ["no.such:out"]}'}, ["no.such:out: this model has no module 'no.such'"]),
        ({"spec": '{"sites": []}'}, ["sites: []", "at least 1"]),
        ({"spec": '{"batch_tokens": 3}'}, ["sites: missing"]),
        ({"spec": '{"sites": ["embed"], "batch": 3}'}, ["batch: unknown key; there are sites, batch_tokens"]),
        ({"spec": '{"sites": ["embed"], "batch_tokens": "many"}'}, ['batch_tokens: "many"', "integer"]),
        ({"spec": '{"sites": ["embed"'}, ["spec is not YAML"]),
        ({"spec": "nowhere.yaml"}, ["spec 'nowhere.yaml' cannot be read: No such file"]),
        ({"model": '{"id": "gpt2", "dtype": "int8"}'}, ['dtype: "int8"', "'bfloat16'"]),
        ({"model": '{"id": "gpt2", "weights": "x"}'}, ["weights: unknown key; there are id, backend, revision"]),
        ({"model": "absent"}, ["absent: the directory does not exist"]),
        ({"model": "empty"}, ["has no config.json"]),
        ({"model": "no weights"}, ["no weights: the directory has no weights; expected model.safetensors"]),
        ({"model": "pickled"}, ["pickled weights such as pytorch_model.bin are never loaded"]),
        ({"corpus": "long.zarr"}, ["context: 65 is longer than this model allows; at most 64"]),
        ({"corpus": "absent.zarr"}, ["absent.zarr: is no Zarr v3 group; prepare the corpus first"]),
    ],
    ids=lambda value: next(iter(value.values()))[:40] if isinstance(value, dict) else "",
)
def test_bad_input_to_a_harvest(
    prepared: Path, tmp_path: Path, harvest: Any, what: dict[str, str], parts: list[str]
) -> None:
    if (model := what.get("model")) in ("empty", "no weights", "pickled"):
        folder = prepared / str(model)
        folder.mkdir(exist_ok=True)
        if model != "empty":
            shutil.copy(prepared / "model" / "config.json", folder)
        if model == "pickled":
            (folder / "pytorch_model.bin").write_bytes(b"never read")
    refused(harvest(*arguments_of(prepared, tmp_path, **what)), *parts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ('{"documentation": ["tqdm"], "tokens": 100, "minimum_characters": "1M"}', ["['tqdm'] gives no text", "short"]),
        ('{"documentation": ["nonexistant"], "tokens": 100}', ["documentation: 'nonexistant' is not installed here"]),
        ('{"documentation": ["tqdm"], "tokens": "-3"}', ['tokens: "-3"', "greater than 0"]),
        ('{"documentation": ["tqdm"]}', ["tokens: missing"]),
        ('{"documentation": ["tqdm"], "tokens": 100, "contxt": 9}', ["contxt: unknown key", "tokens, context"]),
    ],
    ids=["empty", "package", "negative", "missing", "unknown"],
)
def test_bad_input_to_prepare(prepared: Path, tmp_path: Path, harvest: Any, spec: str, parts: list[str]) -> None:
    outputs = ["--output", tmp_path / "corpus.zarr", "--manifest", tmp_path / "corpus.json"]
    refused(harvest("prepare", spec, "--model", prepared / "model", *outputs), *parts)
    assert files(tmp_path) == {}


def test_images_need_no_model(tmp_path: Path, harvest: Any) -> None:
    outputs = ["--output", tmp_path / "corpus.zarr", "--manifest", tmp_path / "corpus.json"]
    refused(harvest("prepare", CORPUS, *outputs), "--model: missing; a corpus of text needs the model")
    refused(
        harvest("prepare", '{"images": 3, "digit": true}', *outputs), "digit: unknown key; there are images, folder"
    )
    assert files(tmp_path) == {}
    assert harvest("prepare", '{"images": 3, "digits": true}', *outputs).errors == []
    assert json.loads((tmp_path / "corpus.json").read_text())["images"] == 3


def test_rows_of_the_other_kind(prepared: Path, tmp_path: Path, harvest: Any) -> None:
    said = harvest(*arguments_of(prepared, tmp_path, '{"sites": ["embed"], "rows": "patches"}'))
    refused(said, "rows: patches: is for images; a row of text is one of its tokens")


@pytest.mark.parametrize("part", ["4/3", "0/3", "1", "a/b"])
def test_bad_parts(prepared: Path, tmp_path: Path, harvest: Any, part: str) -> None:
    refused(harvest(*arguments_of(prepared, tmp_path), "--part", part), f"--part: '{part}' is not a part such as 1/3")
    assert list(tmp_path.iterdir()) == []


def test_folders_that_cannot_be_written(prepared: Path, tmp_path: Path, harvest: Any) -> None:
    (tmp_path / "file").write_text("text")
    below = tmp_path / "file" / "folder"
    refused(harvest(*arguments_of(prepared, below)), f"output folder {below}: cannot be written (Not a directory)")
    outputs = ["--output", below / "corpus.zarr", "--manifest", below / "corpus.json"]
    refused(harvest("prepare", CORPUS, "--model", prepared / "model", *outputs), f"{below}: cannot be written")
    assert files(tmp_path) == {"file": b"text"}


def test_too_little_disk(prepared: Path, tmp_path: Path, harvest: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=20_000))
    refused(harvest(*arguments_of(prepared, tmp_path)), "needs 50", "kB more, 20 kB are free", "fewer tokens or sites")
    assert list(tmp_path.iterdir()) == []


def test_a_store_of_another_harvest(prepared: Path, tmp_path: Path, harvest: Any) -> None:
    assert harvest(*arguments_of(prepared, tmp_path)).status == 0
    before = files(tmp_path)
    other = harvest(*arguments_of(prepared, tmp_path, '{"sites": ["layers.2.resid_post"]}'))
    refused(other, 'sites: it has ["layers.1.resid_post"], the config says ["layers.2.resid_post"]')
    assert files(tmp_path) == before


def cells(out: str) -> list[list[str]]:
    return [re.split(r" {2,}", line) for line in out.splitlines()]


def test_a_models_sites(prepared: Path, harvest: Any) -> None:
    said = harvest("sites", prepared / "model")
    assert (said.status, said.errors) == (0, [])
    rows = cells(said.out)
    parts = ["resid_pre", "attn_out", "mlp_in", "mlp_out", "resid_post"]
    names = ["embed", *(f"layers.{layer}.{part}" for layer in range(4) for part in parts), "final"]
    assert rows == [["site (text)", "width", "rows"], *([name, "24", "tokens"] for name in names)]
    refused(harvest("sites", prepared / "nowhere"), "nowhere: the directory does not exist")


def test_the_sites_of_another_backend(prepared: Path, harvest: Any) -> None:
    said = harvest("sites", json.dumps({"id": str(prepared / "model"), "backend": "transformer_lens"}))
    assert (said.status, said.errors) == (0, [])
    rows = cells(said.out)
    assert ["blocks.3.hook_resid_post", "24", "tokens"] in rows
    assert ["blocks.0.attn.hook_pattern", "no vector per token"] in rows


@pytest.mark.parametrize(
    ("make", "images", "text"),
    [
        (tiny_clip, ("patches or images", "32", "20"), ("24", "20")),
        (tiny_siglip, ("patches", "32", "32"), ("24", "32")),
        (tiny_vit, ("patches or images", "32", "32"), None),
        (None, ("patches or images", "32", "20"), ("16", "20")),
    ],
)
def test_the_sites_of_towers(make: Any, images: Any, text: Any, tmp_path: Path, harvest: Any) -> None:
    architecture = {"id": "own", "backend": "open_clip", "random_seed": 0, "architecture": tiny_open_clip()}
    said = harvest("sites", str(make(tmp_path / "model")) if make else json.dumps(architecture))
    assert (said.status, said.errors) == (0, [])
    tables = [cells(part) for part in said.out.strip().split("\n\n")]
    assert [rows[0][0] for rows in tables] == ["site (images)", *(["site (text)"] if text else [])]
    rows, width, pooled = images
    assert ["layers.2.resid_post", width, rows] in tables[0]
    assert ["pooled", pooled, "images"] in tables[0]
    if text:
        assert ["layers.1.mlp_in", text[0], "tokens or texts"] in tables[1]
        assert ["pooled_normalized", text[1], "texts"] in tables[1]


def test_what_a_store_holds(prepared: Path, tmp_path: Path, harvest: Any) -> None:
    assert harvest(*arguments_of(prepared, tmp_path)).status == 0
    said = harvest("inspect", tmp_path / "activations.zarr")
    assert (said.status, said.errors) == (0, [])
    rows = cells(said.out)
    manifest = json.loads((tmp_path / "activations.manifest.json").read_text())
    assert ["rows", "600"] in rows
    assert ["shards", "17 of 17 are finished, 37 rows each"] in rows
    assert ["dtype", "bfloat16"] in rows
    assert ["fingerprint", manifest["fingerprint"]] in rows
    found = manifest["sites"]["layers.1.resid_post"]
    assert ["layers.1.resid_post", "24", f"{found['mean_norm']:.4g}", f"{found['total_variance']:.4g}"] in rows
    assert ["package", "1", "tqdm"] in rows
    assert ["rows/position", "600", "int32"] in rows
    assert ["sites", '["layers.1.resid_post"]'] in rows
    assert max(map(len, said.out.splitlines())) < 120


def test_what_an_unfinished_store_holds(prepared: Path, tmp_path: Path, harvest: Any) -> None:
    assert harvest(*arguments_of(prepared, tmp_path), "--part", "1/600").status == 0
    said = harvest("inspect", tmp_path / "activations.zarr")
    assert (said.status, said.errors) == (0, [])
    assert ["layers.1.resid_post", "24", "-", "-"] in cells(said.out)


def test_no_store_to_inspect(tmp_path: Path, harvest: Any) -> None:
    refused(harvest("inspect", tmp_path / "absent.zarr"), "absent.zarr: is no Zarr v3 group; run the harvest first")


@pytest.mark.parametrize("command", ["sites", "inspect"])
def test_help(harvest: Any, command: str) -> None:
    assert "directory" in (said := harvest(command, "--help")).out or "activations.zarr" in said.out
    assert said.status == 0


def test_in_a_process_of_its_own(prepared: Path, tmp_path: Path) -> None:
    """Nothing that a library prints or warns of joins the one line."""

    def run(*arguments: str | Path) -> Said:
        command = [sys.executable, "-m", "harvest", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        return Said(done.returncode, done.stdout, lines(done.stderr))

    refused(run(*arguments_of(prepared, tmp_path, '{"sites": ["layers.9.mlp_in"]}')), "this model has layers 0 to 3")
    assert list(tmp_path.iterdir()) == []
    assert run(*arguments_of(prepared, tmp_path)).errors == []
