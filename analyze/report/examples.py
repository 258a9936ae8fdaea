"""Top examples of some latents, read from the packs, as a dictionary's page shows them."""

import base64
import pathlib
from typing import Any

import numpy as np

from analyze.examples import PACK, read_pack
from harvest.files import read_json

SHOWN = 256
"""Latents with examples on the page: an even choice from the live ones in the order of their firing rate."""


def shown_examples(measured: pathlib.Path, summary: dict[str, Any], firing_F: np.ndarray) -> dict[str, Any]:
    """`latents`: each with its number and top `examples`; of images also `images`, `grid` and `pixels`."""
    chosen = choose(firing_F, SHOWN).tolist()
    packs = {number: read_pack(measured / f"examples/{number}.json.gz") for number in {n // PACK for n in chosen}}
    latents = []
    for number in chosen:
        pack = packs[number // PACK]
        examples = pack["latents"][str(number)]["top"]
        for example in examples:
            if "tokens" in example:
                said = [pack["texts"][text] for text in example["tokens"]]
                example["tokens"] = list(zip(said, example["activations"], strict=True))
        latents.append({"latent": number, "examples": examples})
    if "images" not in summary:
        return {"latents": latents, "images": None, "grid": None, "pixels": None}
    names = read_json(measured / "images/names.json", "measurement")
    images = {}
    for number in sorted({example["image"] for latent in latents for example in latent["examples"]}):
        if str(number) in names:
            encoded = base64.b64encode((measured / f"images/{number}.jpg").read_bytes()).decode()
            images[number] = {"name": names[str(number)], "thumbnail": f"data:image/jpeg;base64,{encoded}"}
    return {"latents": latents, "images": images, **{key: summary["images"][key] for key in ("grid", "pixels")}}


def choose(firing_F: np.ndarray, count: int) -> np.ndarray:
    """At most `count` live latents, evenly spaced in the order of firing rate, the most frequent first."""
    order_F = np.lexsort((np.arange(len(firing_F)), -firing_F))
    live = order_F[: np.count_nonzero(firing_F)]
    return live[np.linspace(0, len(live) - 1, min(count, len(live))).round().astype(int)] if len(live) else live
