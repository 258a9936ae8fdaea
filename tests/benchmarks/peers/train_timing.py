"""What the training scripts of all peers have in common: their arguments, the clock, and the JSON line they print.

Imports nothing of ours: it runs in a peer's environment.
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def arguments(description: str | None, architectures: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--d", type=int, default=768, help="width of an activation")
    parser.add_argument("--latents", type=int, default=16_384)
    parser.add_argument("--k", type=int, default=32, help="active latents of a row; JumpReLU starts where it starts")
    parser.add_argument("--batch", type=int, default=2048, help="rows of a step")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--architecture", choices=architectures, default=architectures[0])
    parser.add_argument("--steps", type=int, default=5, help="timed steps, after the warm-up")
    parser.add_argument("--warmup", type=int, default=1, help="steps that are not timed")
    return parser.parse_args()


def print_speed(
    peer: str, given: argparse.Namespace, step: Callable[[torch.Tensor], object], rows_BD: torch.Tensor
) -> None:
    """Time `step(rows_BD)`; print one JSON line with the seconds of each step, tokens a second, and peak memory."""
    cuda = rows_BD.device.type == "cuda"
    seconds = []
    for number in range(given.warmup + given.steps):
        if cuda:
            torch.cuda.synchronize()
            if number == given.warmup:
                torch.cuda.reset_peak_memory_stats()
        begun = time.perf_counter()
        step(rows_BD)
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    timed = seconds[given.warmup :]
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    said: dict[str, Any] = {
        "peer": peer,
        **vars(given),
        "seconds": timed,
        "tokens_per_second": len(rows_BD) / statistics.median(timed),
        "peak_memory_bytes": peak,
    }
    print(json.dumps(said))
