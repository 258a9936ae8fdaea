"""How fast a machine multiplies, moves memory and writes: measured here, or as published for a GPU."""

import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from harvest.errors import UserError
from harvest.files import existing

SHARE = 0.4
"""Of a published peak; large products of models reach about this much."""
SECONDS = 0.2
"""Each measurement takes about this long."""


@dataclass(frozen=True)
class Rates:
    """`products`: FLOPs a second of a matrix product, by dtype; `memory` and `disk`: bytes a second."""

    device: str
    products: Mapping[str, float]
    memory: float
    disk: float


H100 = Rates(
    "an H100",
    {"bfloat16": SHARE * 989e12, "float16": SHARE * 989e12, "float32": SHARE * 67e12},
    SHARE * 3.35e12,
    1e9,
)
"""The SXM card's data sheet, without sparsity and TF32, and a disk that gives 1 GB/s."""


def measured_rates(dtypes: set[str], folder: pathlib.Path) -> Rates:
    """Of the first GPU, or of the CPU where there is none, and of the disk that `folder` is or will be on."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device.type == "cuda"
    size = 4096 if gpu else 512
    products = {}
    for name in dtypes:
        x = torch.ones(size, size, dtype=getattr(torch, name), device=device)
        products[name] = 2 * size**3 * _per_second(lambda x=x: x @ x)  # type: ignore[misc]
    numbers = torch.ones(2**28 if gpu else 2**24, device=device)
    other = torch.empty_like(numbers)
    memory = 8 * numbers.numel() * _per_second(lambda: other.copy_(numbers))
    name = torch.cuda.get_device_name(device) if gpu else f"this CPU ({torch.get_num_threads()} threads)"
    return Rates(name, products, memory, _disk(folder))


def _per_second(run: Callable[[], object]) -> float:
    def synchronise() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    run()
    begun, times = synchronise(), 0
    while (now := synchronise()) - begun < SECONDS or times == 0:
        run()
        times += 1
    return times / (now - begun)


def _disk(folder: pathlib.Path) -> float:
    there = existing(folder)
    block = os.urandom(2**24)
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            begun = time.perf_counter()
            for _ in range(4):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            return 4 * len(block) / (time.perf_counter() - begun)
    except OSError as error:
        raise UserError(f"results folder {there}: cannot be written ({error.strerror})") from None
