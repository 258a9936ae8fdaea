"""What the scripts that time training have in common: their arguments, the clock, and the JSON line they print.

Imports nothing of ours: it runs in the peers' environments too.
"""

import argparse
import json
import pathlib
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
    name: str,
    given: argparse.Namespace,
    step: Callable[[torch.Tensor], object],
    rows_BD: torch.Tensor,
    encoder: Callable[[torch.Tensor], object] | None = None,
) -> None:
    """Print one JSON line: the seconds of each `step(rows_BD)`, tokens a second, peak memory; and, where it is given,
    the seconds that the encoder's product alone takes."""
    seconds = _seconds(step, rows_BD, given)
    cuda = rows_BD.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if cuda else _peak_of_this_process()
    found: dict[str, Any] = {
        "name": name,
        **vars(given),
        "seconds": seconds,
        "tokens_per_second": len(rows_BD) / statistics.median(seconds),
        "peak_memory_bytes": peak,
    }
    if encoder is not None:
        found["encoder_seconds"] = statistics.median(_seconds(encoder, rows_BD, given))
    print(json.dumps(found))


def _peak_of_this_process() -> int:
    """Bytes. Not `getrusage`, whose peak a process inherits from the one that started it."""
    (line,) = (line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def _seconds(work: Callable[[torch.Tensor], object], rows_BD: torch.Tensor, given: argparse.Namespace) -> list[float]:
    cuda = rows_BD.device.type == "cuda"
    wait = torch.cuda.synchronize if cuda else lambda: None
    seconds = []
    for number in range(given.warmup + given.steps):
        wait()
        if cuda and number == given.warmup:
            torch.cuda.reset_peak_memory_stats()
        begun = time.perf_counter()
        work(rows_BD)
        wait()
        seconds.append(time.perf_counter() - begun)
    return seconds[given.warmup :]
