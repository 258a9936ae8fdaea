"""`python -m train load`: a dictionary from elsewhere becomes what training leaves, as the same function."""

import json
import runpy
import socket
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from harvest.errors import UserError
from harvest.store import Store
from tests.synthetic import Synthetic, synthetic_store
from tests.train.saelens_cases import FIXTURES, write_case
from tests.training import run as train_one
from tests.training import spec_of
from train.config import DictionarySpec, LoadSpec
from train.elsewhere import canonical, find, load_elsewhere
from train.files import load

THEIRS, OLD = FIXTURES / "saelens", FIXTURES / "saelens-old"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    widths = {"x": 12, "y": 10, "layers.2.resid_post": 12, "layers.3.resid_post": 12, "narrow": 6}
    return synthetic_store(tmp_path_factory.mktemp("store"), Synthetic(rows=900, widths=widths))


def loaded(store: Store, output: Path, load: Path, reads: str = "x", **spec: Any) -> dict[str, Any]:
    load_elsewhere(LoadSpec(load=str(load), reads=[reads], **spec), store.path, output)
    found: dict[str, Any] = json.loads((output / "training.json").read_text())
    return found


@torch.inference_mode()
@pytest.mark.parametrize("folder", [THEIRS / "jumprelu", THEIRS / "topk_in_decoder_norms", OLD / "standard"])
def test_it_is_the_same_function(store: Store, tmp_path: Path, folder: Path) -> None:
    loaded(store, tmp_path, folder)
    (there, _), (here, cfg) = load(folder), load(tmp_path)
    x_BP = store.read("x", 0, 300)
    torch.testing.assert_close(here.encode(x_BP).dense(), there.encode(x_BP).dense(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(here(x_BP), there(x_BP), rtol=1e-6, atol=1e-6)
    assert cfg["metadata"]["store"] == store.fingerprint
    assert (cfg["metadata"]["reads"], cfg["metadata"]["writes"]) == (["x"], ["x"])


def test_it_has_every_file_and_key_of_one_that_was_trained(store: Store, tmp_path: Path) -> None:
    trained = train_one(spec_of(tokens=256), store, tmp_path)
    found = loaded(store, tmp_path / "loaded", THEIRS / "topk")
    assert {path.name for path in trained.iterdir()} == {path.name for path in (tmp_path / "loaded").iterdir()}
    report = json.loads((trained / "training.json").read_text())
    assert found.keys() == report.keys() | {"loaded"}
    assert found["spec"].keys() == report["spec"].keys() | {"load"}
    assert all(found[key] is None for key in ("last", "seconds", "steps", "peak_memory_bytes"))
    assert (tmp_path / "loaded/metrics.jsonl").read_text() == (tmp_path / "loaded/resampling.jsonl").read_text() == ""
    ours, theirs = (json.loads((folder / "cfg.json").read_text()) for folder in (trained, tmp_path / "loaded"))
    assert ours["metadata"].keys() == theirs["metadata"].keys()
    assert theirs["metadata"]["spec"]["holdout"] == 0
    assert found["spec"]["sparsity"] == {"topk": {"l0": 5}}
    assert found["loaded"]["from"] == str(THEIRS / "topk")
    assert found["loaded"]["architecture"] == "topk"


@torch.inference_mode()
def test_an_l0_that_nobody_says_is_measured(store: Store, tmp_path: Path) -> None:
    found = loaded(store, tmp_path, OLD / "gated")
    dictionary, _ = load(OLD / "gated")
    whole = float((dictionary.encode(store.read("x", 0, 900)).dense() > 0).sum(1).float().mean())
    assert found["spec"]["sparsity"]["gated"]["l0"] == pytest.approx(whole)  # the stretches are the whole store


def test_a_transcoder(store: Store, tmp_path: Path) -> None:
    found = loaded(store, tmp_path, THEIRS / "jumprelu_skip_transcoder", writes=["y"])
    assert (found["kind"], found["reads"], found["writes"]) == ("transcoder", ["x"], ["y"])
    assert found["spec"]["skip"]
    assert load(tmp_path)[0].W_skip is not None


def test_a_dictionary_of_our_own_of_several_sites(tmp_path: Path) -> None:
    store = synthetic_store(tmp_path, Synthetic(rows=200, widths={"a": 4, "b": 2}))
    write_case("batchtopk-sae", tmp_path / "ours")
    load_elsewhere(LoadSpec(load=str(tmp_path / "ours"), reads=["a", "b"]), store.path, tmp_path / "out")
    assert json.loads((tmp_path / "out/training.json").read_text())["kind"] == "crosscoder"


def spec_text(load: Path | str, reads: str = "[x]", more: str = "") -> str:
    return f"{{load: '{load}', reads: {reads}{more}}}"


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (spec_text(THEIRS / "topk", "[y]"), ["reads: y: 10 wide, and the dictionary", "has 12 there"]),
        (spec_text(THEIRS / "topk", "[x, y]"), ["reads: x, y: 12 + 10 = 22 wide", "has 12 there"]),
        (spec_text(THEIRS / "topk", "[z]"), ["z: no such site"]),
        (spec_text(THEIRS / "topk", more=", writes: [layers.2.resid_post]"), ["writes: ", "an SAE: leave it out"]),
        (spec_text(THEIRS / "transcoder", more=", writes: [narrow]"), ["writes: narrow: 6 wide", "has 10 there"]),
        (spec_text(THEIRS / "jumprelu_transcoder", "[x]"), ["writes: x: 12 wide", "has 10 there"]),
        (spec_text("no/such/place/@", "[x]"), ["load: no/such/place/@: no such directory, and not as on the Hub"]),
        (spec_text("./nowhere"), ["load: ./nowhere: no such directory"]),
        (spec_text("owner/name/../../etc"), ["no such directory"]),
        (spec_text(THEIRS), ["cfg.json: cannot be read"]),
        (spec_text(THEIRS / "topk", more=", tokens: 1M, seed: 1"), ["tokens, seed: for training, and this is loaded"]),
        (spec_text(THEIRS / "topk", more=", lode: 1"), ["lode: unknown key; there are reads, writes, load"]),
        ("{load: 3, reads: [x]}", ["load: 3: Input should be a valid string"]),
    ],
)
def test_mistakes_are_one_line(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], spec: str, says: list[str]
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        arguments = ["train", "load", spec, "--store", str(store.path), "--output", str(tmp_path / "output")]
        patched.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as caught:
            runpy.run_module("train", run_name="__main__")
    assert caught.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    for part in says:
        assert part in lines[0]
    assert not (tmp_path / "output").exists()


def test_a_site_that_is_not_the_dictionarys_is_warned_of(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for reads in ("layers.2.resid_post", "x"):  # what leaves layer 2 enters layer 3, and of x nothing is known
        loaded(store, tmp_path, OLD / "topk", reads)
    assert capsys.readouterr().err == ""
    loaded(store, tmp_path, OLD / "topk", "layers.3.resid_post")
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"warning: {OLD / 'topk'} is for blocks.3.hook_resid_pre, and reads layers.3.resid_post"
    loaded(store, tmp_path, OLD / "standard_normalized")
    assert "expected_average_only_in" in capsys.readouterr().err


def test_names_of_sites() -> None:
    assert canonical("layers.2.resid_post") == canonical("blocks.3.hook_resid_pre") == (2, "resid_post")
    assert canonical("blocks.3.hook_mlp_out") == canonical("layers.3.mlp_out") == (3, "mlp_out")
    assert canonical("blocks.3.ln2.hook_normalized") is None


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hub, and no network."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize("offline", [False, True])
@pytest.mark.parametrize(
    ("place", "command"),
    [
        ("owner/name/blocks.8", "`hf download owner/name blocks.8/cfg.json blocks.8/sae_weights.safetensors`"),
        ("owner/name@v1", "`hf download owner/name cfg.json sae_weights.safetensors --revision v1`"),
    ],
)
def test_without_the_hub_it_says_how_to_get_it(
    hub: Path, monkeypatch: pytest.MonkeyPatch, offline: bool, place: str, command: str
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    with pytest.raises(UserError, match=f"^load: {place}: no directory here") as caught:
        find(place)
    assert command in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_in_the_hubs_cache_needs_no_hub(hub: Path, store: Store, tmp_path: Path) -> None:
    commit = "a" * 40
    repository = hub / "models--owner--name"
    for name in ("cfg.json", "sae_weights.safetensors"):
        file = repository / "snapshots" / commit / "deep/folder" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes((OLD / "topk" / name).read_bytes())
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    for place in ("owner/name/deep/folder", f"owner/name/deep/folder@{commit}"):
        found = loaded(store, tmp_path / "output", Path(place))
        assert (found["loaded"]["from"], found["loaded"]["commit"]) == (place, commit)
    with pytest.raises(UserError, match="owner/name/other: no directory here"):
        find("owner/name/other")


def test_a_repository_without_it_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(UserError, match=r"not to be had from the Hub \(no such files\)"):
        find("owner/name/other")


def test_only_safetensors_and_json_are_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def snapshot(repository: str, **options: Any) -> str:
        asked.append((repository, options["revision"], options["allow_patterns"]))
        if options["local_files_only"]:
            raise FileNotFoundError
        for name in ("cfg.json", "sae_weights.safetensors"):
            (tmp_path / "a[1]").mkdir(exist_ok=True)
            (tmp_path / "a[1]" / name).touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert find("owner/name/a[1]@refs/pr/3") == (tmp_path / "a[1]", tmp_path.name)
    assert asked == [("owner/name", "refs/pr/3", ["a[[]1]/cfg.json", "a[[]1]/sae_weights.safetensors"])] * 2


def test_a_spec_of_training_and_one_of_loading_have_no_key_in_common_but_sites() -> None:
    assert LoadSpec.model_fields.keys() & DictionarySpec.model_fields.keys() == {"reads", "writes"}
