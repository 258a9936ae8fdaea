"""HTML from measurement files: no figure is shown that is not in one of them."""

import json
import pathlib
import shutil
from typing import Any

import jinja2
import numpy as np
from plotly.offline import get_plotlyjs
from safetensors.numpy import load_file

from analyze.report import bench_figures, definitions, figures
from analyze.report.examples import shown_examples
from analyze.report.formats import FILTERS, LEVELS
from analyze.report.paper import ANCHORS, VARIED, compare, papers_name
from analyze.report.recovery import groups_of, matches, pairs_of, read_recovery, read_table
from analyze.report.resampling import resampling_page
from analyze.report.theory import theorems
from harvest.errors import UserError
from harvest.files import make_folder, read_json, write_text

HERE = pathlib.Path(__file__).parent
SHOWN_AT_ONCE = 5
"""Examples of a latent that show without unfolding the others."""
DRAWN_AT_FIRST = 14
"""Curves of a section that are drawn before the reader chooses: seven methods, without and with anchors."""


def build(
    experiment: str,
    dictionaries: list[tuple[str, pathlib.Path, pathlib.Path]],
    manifests: list[pathlib.Path],
    output: pathlib.Path,
    truth: tuple[pathlib.Path, pathlib.Path] | None = None,
) -> None:
    """Write a report that opens from `file://` without a network: `index.html` and a page for each dictionary.

    `dictionaries`: name, folder of its measurements (`analyze.activity.measure`), folder of its training. `manifests`:
    those of the harvests, each in a folder called after its harvest; what `corpus.json` beside one says of its corpus
    is shown too. `truth`: recovery.csv and theory.json of an experiment on the bench, whose report also has
    `recovery.html` and `theory.html`. Where dictionaries were resampled there is `resampling.html`. Raises `UserError`
    where a measurement cannot be read.
    """
    table = read_table(truth[0]) if truth else {}
    found = [_dictionary(*paths, table.get(paths[0])) for paths in dictionaries]
    harvests = [_harvest(path) for path in manifests]
    for place, dictionary in enumerate(found):
        dictionary["harvest"] = _harvest_of(dictionary["training"], harvests)
        dictionary["style"] = figures.style(place)
        if dictionary["recovery"] and dictionary["harvest"] is None:
            raise UserError(f"dictionary {dictionary['name']}: was trained on a store that none of the harvests made")
    pages = (_truth_pages(found, harvests, truth[1]) if truth else {}) | resampling_page(found)
    make_folder(output / "dictionaries")
    shutil.copytree(HERE / "static", output / "static", dirs_exist_ok=True)
    write_text(output / "static" / "plotly.min.js", get_plotlyjs())
    if truth:
        shutil.copy(truth[0], output / "recovery.csv")
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= FILTERS | {"method_name": papers_name}
    templates.globals |= {
        "experiment": experiment,
        "harvests": harvests,
        "drawn_at_first": DRAWN_AT_FIRST,
        "in_legend": figures.IN_LEGEND,
        "levels": LEVELS,
        "pages": list(pages),
        "shown_at_once": SHOWN_AT_ONCE,
    }
    for dictionary in found:
        page = templates.get_template("dictionary.html").render(
            root="../", dictionary=dictionary, figures=figures.of_dictionary(dictionary["summary"])
        )
        write_text(output / "dictionaries" / f"{dictionary['name']}.html", page)
    for name, contents in pages.items():
        write_text(output / f"{name}.html", templates.get_template(f"{name}.html").render(root="", **contents))
    index = templates.get_template("index.html").render(
        root="", dictionaries=found, figures=figures.of_experiment(found), key=[(d["name"], *d["style"]) for d in found]
    )
    write_text(output / "index.html", index)


def _truth_pages(
    dictionaries: list[dict[str, Any]], harvests: list[dict[str, Any]], theory: pathlib.Path
) -> dict[str, dict[str, Any]]:
    """Page -> what it shows. Draws a dictionary without and with anchors, and its seeds, in one colour on all pages."""
    pairs = pairs_of(groups_of(d for d in dictionaries if d["recovery"]))
    groups = [group for pair in pairs for group in pair.groups]
    for place, pair in enumerate(pairs):
        for group in pair.groups:
            for d in group.members:
                d["style"] = (place, "dot" if group is pair.anchored else "solid")
    found = read_json(theory, "theory")
    return {
        "recovery": {
            "pairs": pairs,
            "groups": groups,
            "definitions": definitions,
            "comparison": compare(pairs, {h["name"]: h["manifest"] for h in harvests}),
            "papers_anchors": ANCHORS,
            "varied": VARIED,
            "figure_5": bench_figures.figure_5(groups),
            "figure_6": bench_figures.figure_6(groups),
            "key": [(group.name, *group.members[0]["style"]) for group in groups],
        },
        "theory": {
            "theorems": theorems(found),
            "bench": found["figure_9"],
            "figure_4": bench_figures.figure_4(found["theorem_3_4"]),
            "figure_9": bench_figures.figure_9(found["figure_9"]),
        },
    }


def _dictionary(
    name: str, measured: pathlib.Path, trained: pathlib.Path, line: dict[str, str] | None
) -> dict[str, Any]:
    """Everything that was measured of a dictionary, and its latents as the page shows them.

    These are the latents with examples; where there is a truth (`line`: the dictionary's, of recovery.csv) also those
    that are matched to a feature.
    """
    summary = read_json(measured / "summary.json", "measurement")
    try:
        tensors = load_file(measured / "latents.safetensors")
        found = shown_examples(measured, summary, tensors["firing"])
        lines, events = (
            [json.loads(line) for line in (trained / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
            for name in ("metrics", "resampling")
        )
    except OSError as error:
        raise UserError(f"dictionary {name}: a measurement cannot be read ({error})") from None
    rows, held_out = summary["whole"]["rows"], summary["held_out"]
    recovery = read_recovery(line, measured) if line else None
    training = read_json(trained / "training.json", "training")
    matched = matches(recovery) if recovery else {}
    sites = (summary["decoder_norm_share"] or {"sites": []})["sites"]
    shares_FS = tensors.get("decoder_norm_share", np.empty((summary["latents"], 0)))
    latents = found["latents"] + [
        {"latent": number, "examples": []} for number in matched.keys() - {each["latent"] for each in found["latents"]}
    ]
    for latent in latents:
        number = latent["latent"]
        fired = bool(tensors["firing"][number])
        latent |= {
            "match": matched.get(number),
            "rate": float(tensors["firing"][number]) / rows,
            "rows": int(tensors["firing"][number]),
            "rate_held_out": float(tensors["firing_held_out"][number]) / held_out["rows"] if held_out else None,
            "mean": float(tensors["mean_activation"][number]),
            "max": float(tensors["max_activation"][number]),
            "shares": figures.told_apart_by(list(zip(sites, shares_FS[number].tolist(), strict=True))),
            "histogram": figures.bars(tensors["histogram"][number], tensors["histogram_edges"]) if fired else None,
        }
    return {
        "name": name,
        "summary": summary,
        "training": training,
        "trained_on": training["last"] and training["last"]["tokens"],
        "target_l0": None if "loaded" in training else next(iter(training["spec"]["sparsity"].values()))["l0"],
        "curves": lines,
        "events": events,
        "recovery": recovery,
        **{key: found[key] for key in ("images", "grid", "pixels")},
        "latents": sorted(latents, key=lambda latent: (-latent["rows"], latent["latent"])),
    }


def _harvest_of(training: dict[str, Any], harvests: list[dict[str, Any]]) -> str | None:
    """The harvest that a dictionary was trained on; where there are several, its sites say whose they are."""
    name = next((h["name"] for h in harvests if h["manifest"]["fingerprint"] == training["store"]), None)
    named = {site.partition("/")[0] for site in [*training["reads"], *training["writes"]] if "/" in site}
    return name or ", ".join(h["name"] for h in harvests if h["name"] in named) or None


def _harvest(manifest: pathlib.Path) -> dict[str, Any]:
    corpus = manifest.with_name("corpus.json")
    return {
        "name": manifest.parent.name,
        "manifest": read_json(manifest, "manifest"),
        "corpus": read_json(corpus, "corpus") if corpus.exists() else None,
    }
