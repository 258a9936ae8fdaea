"""How fast a dictionary trains (forward, backward, Adam, unit-norm decoder), beside sparsify and SAELens."""

import json
import os
import pathlib
import statistics
import subprocess
import sys
from typing import Any

import torch

from tests.benchmarks.measure import record

K = 32
PAIRS = 3
SHAPES = {"cpu": [(768, 16_384, 2048)], "cuda": [(768, 32_768, 8192), (4096, 131_072, 4096)]}
"""Width, latents and batch."""
STEPS = {"cpu": ("2", "6"), "cuda": ("5", "20")}
"""Steps before the clock starts, and timed."""
OURS_FIRST = {"jumprelu": "150"}
"""Until l0 is at its target; a step of SAELens's JumpReLU costs the same at any l0."""
PEERS = {"sparsify": ["topk"], "SAELens": ["topk", "batchtopk", "matryoshka", "jumprelu"]}
ENVIRONMENTS = {"sparsify": ".peers/eai-sparsify/bin/python", "SAELens": ".peers/sae-lens/bin/python"}
MEASURED = [("", "tokens/s", "tokens_per_second", 1), (", memory", "GiB at the peak", "peak_memory_bytes", 2**-30)]
SCRIPTS = pathlib.Path(__file__).parent / "peers"


def run() -> list[dict[str, Any]]:
    figures = []
    for device, shapes in SHAPES.items():
        for shape in shapes:
            for peer, architectures in PEERS.items():
                for architecture in architectures:
                    name = f"train, {device}, {shape[0]} x {shape[1]}, {architecture} / {peer}"
                    if device == "cuda" and not torch.cuda.is_available():
                        figures.append(_not_run(name))
                    else:
                        figures += _figures(name, device, peer, architecture, shape)
    return figures


def _not_run(name: str) -> dict[str, Any]:
    return {"name": name, "ours": None, "peer": None, "ratio": None, "unit": "tokens/s", "how": "not run: no GPU"}


def _figures(name: str, device: str, peer: str, architecture: str, shape: tuple[int, int, int]) -> list[dict[str, Any]]:
    """Tokens a second and peak memory."""
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    said = f"{PAIRS} pairs"
    warm, steps = STEPS[device]
    for _ in range(PAIRS):
        first = OURS_FIRST.get(architecture, warm)
        ours.append(_measure(sys.executable, "train_ours.py", architecture, device, shape, first, steps))
        if len(theirs) == len(ours) - 1:
            try:
                script = f"train_{peer.lower()}.py"
                theirs.append(_measure(ENVIRONMENTS[peer], script, architecture, device, shape, warm, steps))
            except (OSError, RuntimeError) as error:  # it may not be there, or need more memory than there is
                said = f"{peer} did not run: {error}; `make peers` makes its environment"
    share = statistics.median(one["encoder_seconds"] / statistics.median(one["seconds"]) for one in ours)
    where = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} CPU cores"
    how = (
        f"{where}, batch {shape[2]}, l0 {K}, float32 weights, bfloat16 encoder; {share:.0%} of our step is the "
        f"encoder's product; {said}"
    )
    figures = []
    for suffix, unit, key, scale in MEASURED:
        mine, other = ([one[key] * scale for one in side] for side in (ours, theirs))
        figures.append(record(name + suffix, mine, other if len(other) == PAIRS else None, unit, how))
    return figures


def _measure(
    python: str, script: str, architecture: str, device: str, shape: tuple[int, int, int], warm: str, steps: str
) -> dict[str, Any]:
    """What the script printed."""
    width, latents, batch = map(str, shape)
    arguments = ["--d", width, "--latents", latents, "--batch", batch, "--k", str(K), "--architecture", architecture]
    done = subprocess.run(
        [python, str(SCRIPTS / script), *arguments, "--device", device, "--warmup", warm, "--steps", steps],
        env={**os.environ, "PYTHONPATH": str(pathlib.Path.cwd())},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
