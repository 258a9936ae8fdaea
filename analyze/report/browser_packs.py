"""What a page shows of latents, pack by pack, in few bytes."""

import collections
import itertools
from typing import Any

import numpy as np

from analyze.report.formats import visible
from analyze.report.measured import Measured

LABELS_SHOWN = 10
BEFORE, AFTER = 8, 4
"""Tokens around one of a quantile group."""
FIRST_CHARACTER, SURROGATES = ord("]"), range(0xD800, 0xE000)
HEAT = "0123456789abcdefghijklmnopqrstuv"
"""Shades of a patch, the last for the latent's largest activation: one character each, as there are many."""


def pack_of(found: Measured, pack: int, examples: dict[str, Any]) -> dict[str, Any]:
    """`texts` and, of each latent of a pack, what its page shows beside the index's figures."""
    everyone = [example for latent in examples["latents"].values() for example in _all(latent)]
    # The most frequent first, so that most tokens are one byte.
    count = collections.Counter(token for example in everyone for token in example.get("tokens", []))
    places = {token: character(place) for place, (token, _) in enumerate(count.most_common())}
    numbered = {name: {label: number for number, label in enumerate(labels)} for name, labels in found.sets.items()}
    numbers = sorted({example["image"] for example in everyone if "image" in example})
    shown = {}
    for latent in found.latents_of(pack):
        of_latent: dict[str, Any] = examples["latents"].get(str(latent), {"top": []})
        shown[latent] = {
            "groups": [len(of_latent["top"]), *map(len, of_latent.get("quantiles", []))],
            "examples": _columns(of_latent, places, numbered, float(found.latents["max_activation"][latent])),
            "histogram": found.latents["histogram"][latent].tolist(),
            "labels": {name: _label_rows(found, name, latent) for name in found.sets if f"{name}/sum" in found.labels},
            **_geometry(found, latent),
            "cofiring": _linked(found.latents, latent, "cofiring_latents", "cofiring_jaccard", "cofiring_correlation"),
        }
    names = {number: visible(found.image_names[key]) for number in numbers if (key := str(number)) in found.image_names}
    return {"texts": [visible(examples["texts"][token]) for token in places], "images": names, "latents": shown}


def _all(latent: dict[str, Any]) -> list[dict[str, Any]]:
    """Examples of a latent, the top ones first, then those of each quantile group."""
    return [*latent["top"], *(example for group in latent.get("quantiles", []) for example in group)]


def _columns(
    of_latent: dict[str, Any], places: dict[int, str], numbered: dict[str, dict[str, int]], largest: float
) -> dict[str, list[Any]]:
    """Examples column by column, which takes half the bytes. `tokens` is a character each, its place among the pack's
    texts; `around` the place and activation of each active token but the example's own; `heat` a character a patch;
    `labels` one of each set, by its number in `numbered`.
    """
    examples = [*of_latent["top"], *(_narrow(e) for group in of_latent.get("quantiles", []) for e in group)]
    columns: dict[str, list[Any]] = {"row": [], "activation": [], "labels": []}
    for example in examples:
        labels = [numbers.get(example["labels"].get(name, ""), -1) for name, numbers in numbered.items()]
        shown = {key: example[key] for key in ("row", "activation", "peak", "image", "patch") if key in example}
        if "tokens" in example:
            shown["tokens"] = "".join([places[token] for token in example["tokens"]])
            active = [(i, a) for i, a in enumerate(example["activations"]) if a and i != example["peak"]]
            shown["around"] = list(itertools.chain.from_iterable(active))
        if "heat" in example:
            top = len(HEAT) - 1
            shown["heat"] = "".join(HEAT[min(top, -int(-top * each // largest))] for each in example["heat"])
        for key, value in {**shown, "labels": labels}.items():
            columns.setdefault(key, []).append(value)
    return columns


def _narrow(example: dict[str, Any]) -> dict[str, Any]:
    """Fewer tokens around an example's own: there are many, and most are to be looked at quickly."""
    if "tokens" not in example:
        return example
    first = max(0, example["peak"] - BEFORE)
    window = slice(first, example["peak"] + AFTER + 1)
    narrow = {key: example[key][window] for key in ("tokens", "activations")}
    return {**example, **narrow, "peak": example["peak"] - first}


def character(place: int) -> str:
    """A number as a character that JSON need not escape; surrogates are left out."""
    code = place + FIRST_CHARACTER
    return chr(code if code < SURROGATES.start else code + len(SURROGATES))


def _label_rows(found: Measured, name: str, latent: int) -> list[list[Any]]:
    """`[label, share of all its activation, precision, recall]`, the largest share first."""
    firing_L, sum_L = found.labels[f"{name}/firing"][latent], found.labels[f"{name}/sum"][latent].astype(np.float64)
    rows_L, fired = found.labels[f"{name}/rows"], found.latents["firing"][latent]
    whole = found.latents["mean_activation"][latent] * fired
    order = np.lexsort((np.arange(len(sum_L)), -sum_L))[:LABELS_SHOWN]
    return [
        [label, *map(short, (sum_L[label] / whole, firing_L[label] / fired, firing_L[label] / rows_L[label]))]
        for label in order.tolist()
        if firing_L[label]
    ]


def _geometry(found: Measured, latent: int) -> dict[str, Any]:
    geometry = found.geometry
    lens = {
        side: [
            [visible(found.tokens.get(token, f"token {token}")), short(logit)]
            for token, logit in zip(
                geometry[f"{side}_tokens"][latent].tolist(), geometry[f"{side}_logits"][latent].tolist(), strict=True
            )
        ]
        for side in ("top", "bottom")
        if f"{side}_tokens" in geometry
    }
    nearest = {
        name: _linked(geometry, latent, f"{name}/nearest_labels", f"{name}/nearest_label_cosines")
        for name in found.sets
        if f"{name}/nearest_labels" in geometry
    }
    return {
        "lens": lens or None,
        "nearest": nearest,
        "neighbours": _linked(geometry, latent, "neighbours", "neighbour_cosines"),
    }


def _linked(tensors: dict[str, np.ndarray], latent: int, key: str, *beside: str) -> list[list[Any]]:
    """`[number, figure, …]` of those that a latent is linked to; -1 is none."""
    if key not in tensors:
        return []
    columns = [tensors[name][latent].tolist() for name in beside]
    return [
        [number, *map(short, figures)]
        for number, *figures in zip(tensors[key][latent].tolist(), *columns, strict=True)
        if number >= 0
    ]


def numbers(values: np.ndarray) -> list[float | int | None]:
    return [short(value) for value in values.tolist()]


def short(value: float) -> float | int | None:
    """Four digits; whole numbers without a point, and null where there is none."""
    if not np.isfinite(value):
        return None
    short = float(f"{value:.4g}")
    return int(short) if short.is_integer() else short


def base_32768(data: bytes) -> str:
    """15 bits a character, from U+3400 on; the first is how many bytes of the last 15 are not meant.

    In UTF-16 that is a fifteenth more than the data, where base64 is a third more.
    """
    short = -len(data) % 15
    bits_N15 = np.unpackbits(np.frombuffer(data + bytes(short), np.uint8)).reshape(-1, 15)
    codes_N = (bits_N15 @ (1 << np.arange(14, -1, -1))).astype("<u2") + 0x3400
    return chr(0x3400 + short) + codes_N.astype("<u2").tobytes().decode("utf-16-le")
