"""HTML from measurement files: no figure is shown that is not in one of them."""

import json
import pathlib
import shutil
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs
from safetensors.numpy import load_file

from analyze.report import figures
from analyze.report.formats import FILTERS, LEVELS
from harvest.errors import UserError
from harvest.files import make_folder, read_json, write_text

HERE = pathlib.Path(__file__).parent
SHOWN_AT_ONCE = 5
"""Examples of a latent that show without unfolding the others."""


def build(
    experiment: str,
    dictionaries: list[tuple[str, pathlib.Path, pathlib.Path]],
    manifests: list[pathlib.Path],
    output: pathlib.Path,
) -> None:
    """Write a report that opens from `file://` without a network: `index.html` and a page for each dictionary.

    `dictionaries`: name, folder of its measurements (`analyze.activity.measure`), folder of its training. `manifests`:
    those of the harvests, each in a folder called after its harvest; what `corpus.json` beside one says of its corpus
    is shown too. Raises `UserError` where a measurement cannot be read.
    """
    found = [_dictionary(*paths) for paths in dictionaries]
    harvests = [_harvest(path) for path in manifests]
    for dictionary in found:
        store = dictionary["training"]["store"]
        dictionary["harvest"] = next((h["name"] for h in harvests if h["manifest"]["fingerprint"] == store), None)
    make_folder(output / "dictionaries")
    shutil.copytree(HERE / "static", output / "static", dirs_exist_ok=True)
    write_text(output / "static" / "plotly.min.js", get_plotlyjs())
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= FILTERS
    templates.globals |= {
        "experiment": experiment,
        "harvests": harvests,
        "levels": LEVELS,
        "shown_at_once": SHOWN_AT_ONCE,
    }
    for dictionary in found:
        page = templates.get_template("dictionary.html").render(
            root="../", dictionary=dictionary, figures=figures.of_dictionary(dictionary["summary"])
        )
        write_text(output / "dictionaries" / f"{dictionary['name']}.html", page)
    index = templates.get_template("index.html").render(
        root="", dictionaries=found, figures=figures.of_experiment(found)
    )
    write_text(output / "index.html", index)


def _dictionary(name: str, measured: pathlib.Path, trained: pathlib.Path) -> dict[str, Any]:
    """Everything that was measured of a dictionary, and its latents with examples as the page shows them."""
    summary = read_json(measured / "summary.json", "measurement")
    found = read_json(measured / "examples.json", "measurement")
    try:
        tensors = load_file(measured / "latents.safetensors")
        lines = (trained / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"dictionary {name}: a measurement cannot be read ({error})") from None
    rows, held_out = summary["whole"]["rows"], summary["held_out"]
    for latent in found["latents"]:
        number = latent["latent"]
        latent |= {
            "rate": float(tensors["firing"][number]) / rows,
            "rows": int(tensors["firing"][number]),
            "rate_held_out": float(tensors["firing_held_out"][number]) / held_out["rows"] if held_out else None,
            "mean": float(tensors["mean_activation"][number]),
            "max": float(tensors["max_activation"][number]),
            "histogram": figures.bars(tensors["histogram"][number], tensors["histogram_edges"]),
        }
    return {
        "name": name,
        "summary": summary,
        "training": read_json(trained / "training.json", "training"),
        "curves": [json.loads(line) for line in lines],
        "latents": found["latents"],
    }


def _harvest(manifest: pathlib.Path) -> dict[str, Any]:
    corpus = manifest.with_name("corpus.json")
    return {
        "name": manifest.parent.name,
        "manifest": read_json(manifest, "manifest"),
        "corpus": read_json(corpus, "corpus") if corpus.exists() else None,
    }
