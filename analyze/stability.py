"""How alike two dictionaries of the same rows are: whether another seed finds the same latents.

Shapes: F and G latents of two dictionaries, R width written.
"""

import itertools
import pathlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

from analyze.directions import decoder_directions, products
from analyze.matching import match
from harvest.errors import UserError
from harvest.files import make_folder, read_json, write_json
from train.files import load

ALL_PAIRS = 16
"""Of at most so many dictionaries that write the same, each is compared with each: 120 pairs, each some five seconds
for 16,384 latents of width 768 on one core."""
ABOVE = 0.9
EDGES = np.linspace(-1, 1, 81)


@dataclass(frozen=True)
class Trained:
    """What tells which dictionaries can be compared."""

    name: str
    folder: pathlib.Path
    written: tuple[Any, ...]
    """The store, and the sites written with their widths; only where these are the same do angles mean anything."""
    widths: list[int]
    spec: dict[str, Any]


def measure_stability(names: Sequence[str], results: pathlib.Path, output: pathlib.Path) -> None:
    """Compare the dictionaries `results/train/<name>` whose store and written sites are the same.

    Writes `output`, a JSON file: `pairs`, of those whose specs differ in the seed alone: `of`, their names;
    `matched_cosine`, `mean`, `median` and share `above_0.9` of the decoder cosines of the one-to-one match of their
    live latents whose sum is the largest (the smaller number of these are matched; dead latents are noise that training
    left where it was); `live`, the number of these in each; `counts` of these cosines between `edges`. And `partners`,
    pairs of names `[a, b]` with a file each in the folder `stability` beside `output`, `<a>--<b>.safetensors`: for each
    latent of a, dead ones too, `partner` `(F,)` int32, the latent of b whose decoder direction is nearest; `cosine`.
    These are all pairs of at most `ALL_PAIRS` dictionaries that write the same; of more, those that differ in one key.

    Raises:
        UserError: a dictionary is given twice, cannot be read, or has no measurements that tell which latents are live.
    """
    if len(set(names)) < len(names):
        raise UserError(f"names: {', '.join(names)}: each dictionary may be given once")
    dictionaries = [_read(name, results / "train" / name) for name in names]
    make_folder(output.parent / "stability")
    pairs, partners = [], []
    for one, other in _comparable(dictionaries):
        directions_FR, directions_GR = (_directions(each) for each in (one, other))
        _write_partners(one, other, directions_FR, directions_GR, output.parent / "stability")
        partners += [[one.name, other.name], [other.name, one.name]]
        if _differing(one, other) == {"seed"}:
            live = [_live(results / "analyze" / each.name) for each in (one, other)]
            pairs.append(
                {"of": [one.name, other.name], **_matched(directions_FR[live[0]], directions_GR[live[1]])}
                | {"live": [len(each) for each in live]}
            )
    write_json(output, {"pairs": pairs, "partners": partners})


def _read(name: str, folder: pathlib.Path) -> Trained:
    facts = read_json(folder / "cfg.json", f"dictionary {name}:").get("metadata", {})
    if missing := [key for key in ("store", "writes", "widths", "spec") if key not in facts]:
        raise UserError(f"dictionary {name}: cfg.json in {folder} has no metadata.{missing[0]}; train or load it again")
    widths = [facts["widths"][site] for site in facts["writes"]]
    return Trained(name, folder, (facts["store"], *facts["writes"], *widths), widths, facts["spec"])


def _comparable(dictionaries: Sequence[Trained]) -> Iterator[tuple[Trained, Trained]]:
    groups: dict[tuple[Any, ...], list[Trained]] = {}
    for dictionary in dictionaries:
        groups.setdefault(dictionary.written, []).append(dictionary)
    for group in groups.values():
        for one, other in itertools.combinations(group, 2):
            if len(group) <= ALL_PAIRS or len(_differing(one, other)) <= 1:
                yield one, other


def _differing(one: Trained, other: Trained) -> set[str]:
    """The keys of their specs in which they differ."""
    return {key for key in {*one.spec, *other.spec} if one.spec.get(key) != other.spec.get(key)}


def _directions(trained: Trained) -> Tensor:
    dictionary, _ = load(trained.folder)
    directions_FR, _ = decoder_directions(dictionary, trained.widths)
    return directions_FR.to("cuda" if torch.cuda.is_available() else "cpu")


def _live(measured: pathlib.Path) -> np.ndarray:
    """Which latents are active in some row."""
    try:
        return np.flatnonzero(load_file(measured / "latents.safetensors")["firing"])
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(
            f"measurements {measured}: latents.safetensors cannot be read ({error}); run `python -m analyze measure`"
        ) from None


def _write_partners(
    one: Trained, other: Trained, directions_FR: Tensor, directions_GR: Tensor, folder: pathlib.Path
) -> None:
    """Of either dictionary's latents in the other, from one product."""
    cosine_F, partner_F = np.empty(len(directions_FR), np.float32), np.empty(len(directions_FR), np.int32)
    cosine_G = torch.full((len(directions_GR),), -torch.inf, device=directions_GR.device)
    partner_G = torch.zeros_like(cosine_G, dtype=torch.int32)
    for rows, cosines_bG in products(directions_FR, directions_GR):
        best_b, best_G = cosines_bG.max(1), cosines_bG.max(0)
        cosine_F[rows], partner_F[rows] = best_b.values.cpu(), best_b.indices.cpu()
        nearer_G = best_G.values > cosine_G
        cosine_G[nearer_G] = best_G.values[nearer_G]
        partner_G[nearer_G] = (best_G.indices[nearer_G] + rows.start).int()
    save_file({"partner": partner_F, "cosine": cosine_F}, folder / f"{one.name}--{other.name}.safetensors")
    save_file(
        {"partner": partner_G.cpu().numpy(), "cosine": cosine_G.cpu().numpy()},
        folder / f"{other.name}--{one.name}.safetensors",
    )


def _matched(directions_FR: Tensor, directions_GR: Tensor) -> dict[str, Any]:
    fewer, more = sorted((directions_FR, directions_GR), key=len)
    if len(fewer) == 0:
        return {"matched_cosine": {"mean": None, "median": None, "above_0.9": None}, "edges": [], "counts": []}
    _, cosines = match(fewer, more)
    cosines = cosines.astype(np.float64).clip(-1, 1)  # rounding must not put one outside
    return {
        "matched_cosine": {
            "mean": float(cosines.mean()),
            "median": float(np.median(cosines)),
            f"above_{ABOVE}": float((cosines > ABOVE).mean()),
        },
        "edges": EDGES.tolist(),
        "counts": np.histogram(cosines, EDGES)[0].tolist(),
    }
