"""What was measured of a dictionary's latents, as its files have it. What a run did not measure is not there."""

import json
import pathlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from analyze.examples import PACK, read_pack
from harvest.errors import UserError
from harvest.files import read_json


@dataclass(frozen=True)
class Measured:
    """The files of `analyze/<dictionary>/` and `train/<dictionary>/`; tensors and facts are empty where a file is not.

    Of F latents and L labels of a set; the tensors' shapes are those that `analyze.activity.measure` and the commands
    beside it say.
    """

    name: str
    folder: pathlib.Path
    summary: dict[str, Any]
    training: dict[str, Any]
    latents: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    figures: dict[str, np.ndarray]
    """monosemanticity.safetensors"""
    geometry: dict[str, np.ndarray]
    tokens: dict[int, str]
    """The texts of the lens's tokens."""
    anchors: list[str]
    """What latents 0, 1, … are held to."""
    image_names: dict[str, str]

    @property
    def count(self) -> int:
        return int(self.summary["latents"])

    @property
    def sets(self) -> dict[str, list[str]]:
        """Label set -> names."""
        sets: dict[str, list[str]] = self.summary.get("labels", {})
        return sets

    @property
    def packs(self) -> range:
        return range(-(-self.count // PACK))

    def latents_of(self, pack: int) -> range:
        return range(pack * PACK, min((pack + 1) * PACK, self.count))

    def examples(self, pack: int) -> dict[str, Any]:
        """`{"texts", "latents"}` of one pack; nothing where none of its latents is live."""
        path = self.folder / "examples" / f"{pack}.json.gz"
        if not path.exists():
            return {"texts": [], "latents": {}}
        try:
            found: dict[str, Any] = read_pack(path)
        except (OSError, EOFError, ValueError) as error:
            raise UserError(f"measurement {path}: cannot be read ({error})") from None
        return found


def read_measured(name: str, folder: pathlib.Path, trained: pathlib.Path) -> Measured:
    """Raises `UserError` for a file that is broken, and for a summary or latents that are missing."""
    training = read_json(trained / "training.json", "training")
    geometry = folder / "geometry.json"
    tokens = read_json(geometry, "measurement")["tokens"] if geometry.exists() else {}
    return Measured(
        name,
        folder,
        read_json(folder / "summary.json", "measurement"),
        training,
        _tensors(folder / "latents.safetensors", needed=True),
        _tensors(folder / "labels.safetensors"),
        _tensors(folder / "monosemanticity.safetensors"),
        _tensors(folder / "geometry.safetensors"),
        {int(number): text for number, text in tokens.items()},
        _anchors(training, trained.parent.parent / "anchors" / f"{name}.safetensors"),
        read_json(names, "measurement") if (names := folder / "images" / "names.json").exists() else {},
    )


def read_match(folder: pathlib.Path, one: str, other: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Of each latent of `one` the best match in `other`, -1 for none, and their decoder cosine: `(F,)`."""
    found = _tensors(folder / f"{one}--{other}.safetensors")
    return (found["partner"], found["cosine"]) if found else None


def _anchors(training: dict[str, Any], path: pathlib.Path) -> list[str]:
    spec = training["spec"].get("anchors")
    if spec is None:
        return []
    names = None
    if path.exists():
        try:
            with safe_open(path, "np") as file:
                names = json.loads((file.metadata() or {}).get("names", "null"))
        except (OSError, SafetensorError, ValueError) as error:
            raise UserError(f"anchors {path}: cannot be read ({error})") from None
    return names or [f"{spec['source']} {place}" for place in range(spec["count"])]


def _tensors(path: pathlib.Path, needed: bool = False) -> dict[str, np.ndarray]:
    if not needed and not path.exists():
        return {}
    try:
        tensors: dict[str, np.ndarray] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"measurement {path}: cannot be read ({error})") from None
    return tensors
