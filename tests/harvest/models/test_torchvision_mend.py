"""transformers is importable beside any pair of torch and torchvision builds."""

import os
import subprocess
import sys
from pathlib import Path

MEND = """
from harvest.models.torchvision_mend import _kept_alive, mend_torchvision
mend_torchvision()
mend_torchvision()
"""


def run(program: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter, with `path` (where a stand-in for torchvision may lie) before the installed packages."""
    paths = [str(part) for part in (path, Path.cwd()) if part]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)


def stand_in(tmp_path: Path, source: str) -> Path:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(source)
    return tmp_path


def test_models_are_importable_beside_the_installed_build() -> None:
    done = run(MEND + "import torchvision; from transformers import LlamaModel; print(len(_kept_alive))")
    matches = run("import torchvision").returncode == 0
    assert done.stdout.strip() == ("0" if matches else "1"), done.stderr


def test_a_build_that_works_is_left_alone(tmp_path: Path) -> None:
    program = MEND + "import torch; print(_kept_alive, hasattr(torch.ops.torchvision, 'nms'))"
    assert run(program, stand_in(tmp_path, "")).stdout.strip() == "[] False"


def test_another_failure_is_not_hidden(tmp_path: Path) -> None:
    done = run(MEND, stand_in(tmp_path, "raise RuntimeError('something else')"))
    assert "RuntimeError: something else" in done.stderr
