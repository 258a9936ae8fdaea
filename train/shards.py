"""One safetensors file of what many processes hold parts of."""

import json
import math
import os
import pathlib

import numpy as np
from torch import Tensor

from train.ranks import Ranks

PIECE = 1024
"""Latents of each process that are on their way at a time."""


def save_shards(tensors: dict[str, tuple[Tensor, int | None]], path: pathlib.Path, ranks: Ranks) -> None:
    """Write the file that `safetensors.torch.save_file` would write of the whole tensors, in float32; collective.

    `tensors`: by name, this process's part, and the axis along which the parts follow each other, in the order of the
    processes; None for what every process has whole. The first process writes, and holds a piece of each at a time.
    Raises `OSError` there if the disk is full or the file cannot be written.
    """
    shapes = {name: _whole_shape(part, axis, ranks.world) for name, (part, axis) in tensors.items()}
    starts = _write_frame(shapes, path) if ranks.rank == 0 else {}
    for name, (part, axis) in sorted(tensors.items()):
        if ranks.rank == 0:
            whole = np.memmap(path, np.dtype("<f4"), "r+", starts[name], shapes[name])
        if axis is None:
            if ranks.rank == 0:
                whole[...] = part.float().cpu().numpy()
            continue
        own = part.shape[axis]
        for first in range(0, own, PIECE):
            piece = part.narrow(axis, first, min(PIECE, own - first)).float()
            for rank, found in enumerate(ranks.stack(piece)):
                if ranks.rank == 0:
                    at = rank * own + first
                    place = (slice(None),) * axis + (slice(at, at + found.shape[axis]),)
                    whole[place] = found.cpu().numpy()


def _whole_shape(part: Tensor, axis: int | None, world: int) -> tuple[int, ...]:
    return tuple(size * (world if index == axis else 1) for index, size in enumerate(part.shape))


def _write_frame(shapes: dict[str, tuple[int, ...]], path: pathlib.Path) -> dict[str, int]:
    """The header, and room for what it describes; gives where each tensor's bytes begin."""
    starts, stop = {}, 0
    for name in sorted(shapes):
        starts[name], stop = stop, stop + 4 * math.prod(shapes[name])
    header = {
        name: {"dtype": "F32", "shape": shapes[name], "data_offsets": [start, start + 4 * math.prod(shapes[name])]}
        for name, start in starts.items()
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.flush()
        os.posix_fallocate(file.fileno(), 0, 8 + len(text) + stop)  # a full disk is an error here, not a crash later
    return {name: 8 + len(text) + start for name, start in starts.items()}
