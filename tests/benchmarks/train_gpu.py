"""How fast a dictionary trains on a GPU, beside sparsify and SAELens on the same one."""

import json
import os
import pathlib
import statistics
import subprocess
import sys
from typing import Any

import torch

from tests.benchmarks.measure import record

SHAPES = {"768 x 32,768": (768, 32_768, 8192), "4096 x 131,072": (4096, 131_072, 4096)}
"""Width, latents and batch."""
K = 32
PAIRS = 3
PEERS = {"sparsify": ["topk"], "SAELens": ["topk", "batchtopk", "matryoshka", "jumprelu"]}
ENVIRONMENTS = {"sparsify": ".peers/eai-sparsify/bin/python", "SAELens": ".peers/sae-lens/bin/python"}
MEASURED = [("", "tokens/s", "tokens_per_second", 1), (", memory", "GiB at the peak", "peak_memory_bytes", 2**-30)]
SCRIPTS = pathlib.Path(__file__).parent / "peers"


def run() -> list[dict[str, Any]]:
    figures = []
    for shape, sizes in SHAPES.items():
        for peer, architectures in PEERS.items():
            for architecture in architectures:
                name = f"train on a GPU, {architecture}, {shape} / {peer}"
                if torch.cuda.is_available():
                    figures += _figures(name, peer, architecture, sizes)
                else:
                    figures.append(_not_run(name, "tokens/s"))
    return figures


def _not_run(name: str, unit: str) -> dict[str, Any]:
    return {"name": name, "ours": None, "peer": None, "ratio": None, "unit": unit, "how": "not run: no GPU"}


def _figures(name: str, peer: str, architecture: str, sizes: tuple[int, int, int]) -> list[dict[str, Any]]:
    """Tokens a second and peak memory."""
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    said = f"{PAIRS} pairs"
    for _ in range(PAIRS):
        ours.append(_measure(sys.executable, "train_ours.py", architecture, sizes))
        if len(theirs) == len(ours) - 1:
            try:
                theirs.append(_measure(ENVIRONMENTS[peer], f"train_{peer.lower()}.py", architecture, sizes))
            except (OSError, RuntimeError) as error:  # it may not be there, or need more memory than there is
                said = f"{peer} did not run: {error}"
    share = statistics.median(one["encoder_seconds"] / statistics.median(one["seconds"]) for one in ours)
    how = (
        f"{torch.cuda.get_device_name()}, batch {sizes[2]}, k {K}, float32 weights, bfloat16 encoder; {share:.0%} of "
        f"our step is the encoder's product; {said}"
    )
    figures = []
    for suffix, unit, key, scale in MEASURED:
        mine, other = ([one[key] * scale for one in side] for side in (ours, theirs))
        figures.append(record(name + suffix, mine, other if len(other) == PAIRS else None, unit, how))
    return figures


def _measure(python: str, script: str, architecture: str, sizes: tuple[int, int, int]) -> dict[str, Any]:
    """What the script printed."""
    width, latents, batch = map(str, sizes)
    arguments = ["--d", width, "--latents", latents, "--batch", batch, "--k", str(K), "--architecture", architecture]
    done = subprocess.run(
        [python, str(SCRIPTS / script), *arguments, "--device", "cuda", "--warmup", "5", "--steps", "20"],
        env={**os.environ, "PYTHONPATH": str(pathlib.Path.cwd())},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
