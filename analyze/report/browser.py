"""The feature browser: a page a dictionary, an index that opens at once, and packs of latents that load on demand.

`features/<name>.html` is the page, whose hash says what it shows (`#123`, `#123&with=<another dictionary>`). Beside it
`features/<name>/` has, each a script that calls one function of the page, as `file://` lets nothing else load:
`index.js`, a column of each figure; `search.js`, the tokens that latents peak at; `packs/<n>.js`, all else that is
known of 256 latents (gzip, `base_32768`); `with/<other>.js`, the best match of each in another dictionary. For other
programs `latents.csv` and `neuronpedia.json.gz`. All texts are as `formats.visible` writes them.
"""

import collections
import gzip
import json
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import jinja2
import numpy as np

from analyze.report.browser_figures import OF_LABELS, OF_LATENTS, SHARE_OF_NORM
from analyze.report.export import write_csv, write_neuronpedia
from analyze.report.formats import visible
from analyze.report.measured import PACK, Measured, read_match, read_measured
from harvest.files import make_folder, write_bytes, write_text

TEMPLATES = pathlib.Path(__file__).parent / "templates"
LABELS_SHOWN = 10
BEFORE, AFTER = 8, 4
"""Tokens around one of a quantile group."""
PEAKS_SHOWN = 3
FIRST_CHARACTER, SURROGATES = ord("]"), range(0xD800, 0xE000)
HEAT = "0123456789abcdefghijklmnopqrstuv"
"""Shades of a patch, the last for the latent's largest activation: one character each, as there are many."""


def write_browser(
    name: str,
    analyzed: pathlib.Path,
    trained: pathlib.Path,
    output: pathlib.Path,
    others: Sequence[str] = (),
    experiment: str = "",
) -> None:
    """Write the browser of one dictionary into the report's folder `output`, whose `static/` it needs.

    Args:
        analyzed, trained: its folders of measurements and of training; `stability/` and `anchors/` are two above them.
        others: all dictionaries of the report that have a browser, to be shown side by side.

    Raises:
        UserError: a measurement is broken, or the summary or latents are missing.
    """
    found = read_measured(name, analyzed, trained)
    folder = output / "features" / name
    make_folder(folder / "packs")
    lists = ("of", "texts")
    peaks: dict[str, list[Any]] = {key: [] for key in lists}
    top_images: list[int | None] = []
    seen: dict[str, int] = {}
    for pack in found.packs:
        examples = found.examples(pack)
        for latent in _latents_of(found, pack):
            top = examples["latents"].get(str(latent), {"top": []})["top"]
            tokens = collections.Counter(visible(examples["texts"][e["tokens"][e["peak"]]]) for e in top if "peak" in e)
            peaks["of"].append([seen.setdefault(text, len(seen)) for text, _ in tokens.most_common()])
            top_images.append(top[0].get("image") if top else None)
        packed = gzip.compress(_json(_pack(found, pack, examples)).encode(), 9, mtime=0)
        _script(folder / "packs" / f"{pack}.js", "latentPack", name, pack, base_32768(packed))
    peaks["texts"] = list(seen)
    partners = [other for other in others if other != name and _write_match(found, other, analyzed, folder)]
    _script(folder / "index.js", "latentIndex", _index(found, peaks, top_images, others, partners))
    _script(folder / "search.js", "latentTokens", name, peaks)
    if (analyzed / "images").exists():
        shutil.copytree(analyzed / "images", folder / "images", dirs_exist_ok=True)
    write_csv(found, folder / "latents.csv")
    write_neuronpedia(found, folder / "neuronpedia.json.gz")
    page = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True).get_template("browser.html")
    write_text(output / "features" / f"{name}.html", page.render(name=name, experiment=experiment))


def _index(
    found: Measured,
    peaks: dict[str, list[Any]],
    top_images: list[int | None],
    others: Sequence[str],
    partners: list[str],
) -> dict[str, Any]:
    used = sorted({text for of in peaks["of"] for text in of[:PEAKS_SHOWN]})
    place = {text: i for i, text in enumerate(used)}
    training = found.training
    return {
        "name": found.name,
        "kind": training["kind"],
        "reads": training["reads"],
        "writes": training["writes"],
        "latents": found.count,
        "rows": found.summary["whole"]["rows"],
        "packSize": PACK,
        "figures": figures_of(found),
        "sets": {name: [visible(label) for label in labels] for name, labels in found.sets.items()},
        "bestLabels": {name: found.figures[f"{name}/best_label"].tolist() for name in _judged(found)},
        "anchors": [visible(anchor) for anchor in found.anchors],
        "peaks": {
            "texts": [peaks["texts"][text] for text in used],
            "of": [[place[text] for text in of[:PEAKS_SHOWN]] for of in peaks["of"]],
        },
        "images": found.summary.get("images"),
        "topImages": top_images if found.summary.get("images") else None,
        "edges": numbers(found.latents["histogram_edges"]),
        "others": [other for other in others if other != found.name],
        "matched": partners,
    }


def figures_of(found: Measured) -> list[dict[str, Any]]:
    """Every figure of all latents: `key`, `label`, `definition`, `form`, `set` (of labels, or null) and `values`, which
    have four digits and are null where there is none.
    """
    latents, held_out = found.latents, found.summary["held_out"]
    columns: dict[str, np.ndarray] = {
        "rate": latents["firing"] / found.summary["whole"]["rows"],
        **({"rate_held_out": latents["firing_held_out"] / held_out["rows"]} if held_out else {}),
        "mean": latents["mean_activation"],
        "max": latents["max_activation"],
        **{key: found.figures[key] for key in ("token_purity", "score") if key in found.figures},
        **{key: found.geometry[key] for key in ("encoder_decoder_cosine",) if key in found.geometry},
    }
    about = [(vars(figure) | {"set": None}, columns[figure.key]) for figure in OF_LATENTS if figure.key in columns]
    sites = (found.summary.get("decoder_norm_share") or {"sites": []})["sites"]
    for site, shares_F in zip(sites, latents.get("decoder_norm_share", np.empty((0, len(sites)))).T, strict=True):
        of_site = {"key": f"norm/{site}", "label": f"Norm at {site}", "definition": SHARE_OF_NORM, "form": "share"}
        about.append((of_site | {"set": None}, shares_F))
    for name in _judged(found):
        for figure in OF_LABELS:
            if (column := found.figures.get(f"{name}/{figure.key}")) is not None:
                about.append((vars(figure) | {"key": f"{name}/{figure.key}", "set": name}, column))
    return [{**facts, "values": numbers(values)} for facts, values in about if not np.isnan(values).all()]


def _judged(found: Measured) -> list[str]:
    """Label sets whose best labels were measured."""
    return [name for name in found.sets if f"{name}/best_label" in found.figures]


def _latents_of(found: Measured, pack: int) -> range:
    return range(pack * PACK, min((pack + 1) * PACK, found.count))


def _pack(found: Measured, pack: int, examples: dict[str, Any]) -> dict[str, Any]:
    """`texts` and, of each latent of a pack, what its page shows beside the index's figures."""
    everyone = [example for latent in examples["latents"].values() for example in _all(latent)]
    # The most frequent first, so that most tokens are one byte.
    count = collections.Counter(token for example in everyone for token in example.get("tokens", []))
    places = {token: place for place, (token, _) in enumerate(count.most_common())}
    numbers = sorted({example["image"] for example in everyone if "image" in example})
    shown = {}
    for latent in _latents_of(found, pack):
        of_latent: dict[str, Any] = examples["latents"].get(str(latent), {"top": []})
        shown[latent] = {
            "groups": [len(of_latent["top"]), *map(len, of_latent.get("quantiles", []))],
            "examples": _columns(found, of_latent, places, float(found.latents["max_activation"][latent])),
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
    found: Measured, of_latent: dict[str, Any], places: dict[int, int], largest: float
) -> dict[str, list[Any]]:
    """Examples column by column, which takes half the bytes. `tokens` is a character each, its place among the pack's
    texts; `around` the place and activation of each active token but the example's own; `heat` a character a patch.
    """
    examples = [*of_latent["top"], *(_narrow(e) for group in of_latent.get("quantiles", []) for e in group)]
    columns: dict[str, list[Any]] = {"row": [], "activation": [], "labels": []}
    numbered = {name: {label: number for number, label in enumerate(labels)} for name, labels in found.sets.items()}
    for example in examples:
        labels = [numbered[name].get(example["labels"].get(name, ""), -1) for name in found.sets]
        shown = {key: example[key] for key in ("row", "activation", "peak", "image", "patch") if key in example}
        if "tokens" in example:
            shown["tokens"] = "".join(character(places[token]) for token in example["tokens"])
            active = ((i, a) for i, a in enumerate(example["activations"]) if a and i != example["peak"])
            shown["around"] = [each for pair in active for each in pair]
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
        [label, *map(_short, (sum_L[label] / whole, firing_L[label] / fired, firing_L[label] / rows_L[label]))]
        for label in order.tolist()
        if firing_L[label]
    ]


def _geometry(found: Measured, latent: int) -> dict[str, Any]:
    geometry = found.geometry
    lens = {
        side: [
            [visible(found.tokens.get(token, f"token {token}")), _short(logit)]
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
        [number, *map(_short, figures)]
        for number, *figures in zip(tensors[key][latent].tolist(), *columns, strict=True)
        if number >= 0
    ]


def _write_match(found: Measured, other: str, analyzed: pathlib.Path, folder: pathlib.Path) -> bool:
    match = read_match(analyzed.parent.parent / "stability", found.name, other)
    if match is None:
        return False
    make_folder(folder / "with")
    _script(folder / "with" / f"{other}.js", "latentMatch", found.name, other, match[0].tolist(), numbers(match[1]))
    return True


def numbers(values: np.ndarray) -> list[float | int | None]:
    return [_short(value) for value in values.tolist()]


def _short(value: float) -> float | int | None:
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


def _script(path: pathlib.Path, function: str, *arguments: Any) -> None:
    """In UTF-16, which scripts may be in, where most of it is `base_32768`."""
    encoding = "utf-16" if function == "latentPack" else "utf-8"
    write_bytes(path, f"{function}({','.join(map(_json, arguments))});\n".encode(encoding))


def _json(value: Any) -> str:
    """JSON that may stand in a script, and a script in a page: nothing in it ends either."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
