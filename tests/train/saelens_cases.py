"""Dictionaries of every sparsity and kind, saved by us, and SAELens in its own environment to open them.

`python -m tests.train.saelens_cases` records what SAELens computes for them under `tests/fixtures/ours` (`make peers`
installs SAELens).
"""

import pathlib
import subprocess

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from train.dictionary import Dictionary
from train.files import save
from train.sparsity import make_sparsity

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
SAELENS = pathlib.Path(__file__).parents[2] / ".peers/sae-lens/bin/python"
PEER = pathlib.Path(__file__).with_name("saelens_peer.py")

KINDS = {
    # width read, width written, centered, skip
    "sae": (6, 6, True, False),
    "sae-skip": (6, 6, True, True),
    "transcoder": (6, 6, False, False),
    "transcoder-narrow": (6, 5, False, False),
    "transcoder-skip": (6, 5, False, True),
}
METHODS = ("relu", "jumprelu", "topk", "batchtopk", "gated")
ALL = [f"{method}-{kind}" for method in METHODS for kind in KINDS]
OURS_ALONE = ["topk-sae-skip", "topk-transcoder-narrow", "topk-transcoder-skip"]
"""SAELens has no architecture that equals these."""
SHARED = [name for name in ALL if name not in OURS_ALONE]
LATENTS = 20


def case(name: str) -> Dictionary:
    """A dictionary with every parameter random, ready for use; the same one on every machine."""
    method, kind = name.split("-", 1)
    read, written, centered, skip = KINDS[kind]
    random = np.random.RandomState(METHODS.index(method))
    dictionary = Dictionary(read, written, make_sparsity(method, 4, LATENTS), centered, skip).eval()
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.copy_(torch.from_numpy(0.5 * random.standard_normal(parameter.shape)))
        for buffer in dictionary.buffers():
            buffer.fill_(0.3)
    return dictionary


def inputs(name: str) -> Tensor:
    random = np.random.RandomState(1)
    return torch.from_numpy(2 * random.standard_normal((16, KINDS[name.split("-", 1)[1]][0])) + 0.5).float()


def write_case(name: str, folder: pathlib.Path) -> None:
    save(case(name), folder, {"kind": name})
    save_file({"x": inputs(name)}, folder / "x.safetensors")


def ask_saelens(folders: list[pathlib.Path]) -> None:
    """SAELens's latents and output for every folder's inputs, into its `expected.safetensors`."""
    done = subprocess.run([SAELENS, PEER, "answer", *folders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


if __name__ == "__main__":
    recorded = [FIXTURES / "ours" / name for name in SHARED]
    for folder in recorded:
        write_case(folder.name, folder)
    ask_saelens(recorded)
    for folder in recorded:
        (folder / "x.safetensors").unlink()
