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

from analyze.examples import PACK, without_collector
from analyze.report.browser_figures import OF_LABELS, OF_LATENTS, SHARE_OF_NORM
from analyze.report.browser_packs import base_32768, numbers, pack_of
from analyze.report.export import neuronpedia_file, write_csv
from analyze.report.formats import visible
from analyze.report.measured import Measured, read_match, read_measured
from harvest.files import make_folder, write_bytes, write_text
from harvest.progress import progress

TEMPLATES = pathlib.Path(__file__).parent / "templates"
PEAKS_SHOWN = 3


@without_collector()
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
    whole = neuronpedia_file(found, folder / "neuronpedia.json.gz")
    with progress(found.count, f"pages of {name}", "latent") as bar, whole as add:
        for pack in found.packs:
            examples = found.examples(pack)
            for latent in found.latents_of(pack):
                top = examples["latents"].get(str(latent), {"top": []})["top"]
                at = [visible(examples["texts"][e["tokens"][e["peak"]]]) for e in top if "peak" in e]
                texts = [text for text, _ in collections.Counter(at).most_common()]
                peaks["of"].append([seen.setdefault(text, len(seen)) for text in texts])
                top_images.append(top[0].get("image") if top else None)
            packed = gzip.compress(_json(pack_of(found, pack, examples)).encode(), 9, mtime=0)
            _script(folder / "packs" / f"{pack}.js", "latentPack", name, pack, base_32768(packed))
            add(pack, examples)
            bar.update(len(found.latents_of(pack)))
    peaks["texts"] = list(seen)
    partners = [other for other in others if other != name and _write_match(found, other, analyzed, folder)]
    _script(folder / "index.js", "latentIndex", _index(found, peaks, top_images, others, partners))
    _script(folder / "search.js", "latentTokens", name, peaks)
    if (analyzed / "images").exists():
        shutil.copytree(analyzed / "images", folder / "images", dirs_exist_ok=True)
    write_csv(found, folder / "latents.csv")
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


def _write_match(found: Measured, other: str, analyzed: pathlib.Path, folder: pathlib.Path) -> bool:
    match = read_match(analyzed.parent.parent / "stability", found.name, other)
    if match is None:
        return False
    make_folder(folder / "with")
    _script(folder / "with" / f"{other}.js", "latentMatch", found.name, other, match[0].tolist(), numbers(match[1]))
    return True


def _script(path: pathlib.Path, function: str, *arguments: Any) -> None:
    """In UTF-16, which scripts may be in, where most of it is `base_32768`."""
    encoding = "utf-16" if function == "latentPack" else "utf-8"
    write_bytes(path, f"{function}({','.join(map(_json, arguments))});\n".encode(encoding))


def _json(value: Any) -> str:
    """JSON that may stand in a script, and a script in a page: nothing in it ends either."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
