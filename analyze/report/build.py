"""HTML from measurement files: no figure is shown that is not in one of them."""

import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from analyze.report import bench_figures, definitions, figures
from analyze.report.browser import write_browser
from analyze.report.columns import columns_of
from analyze.report.dictionaries import harvest_of, read_dictionary, read_harvest
from analyze.report.formats import FILTERS
from analyze.report.monosemanticity import monosemanticity_page
from analyze.report.paper import ANCHORS, VARIED, compare, papers_name
from analyze.report.recovery import groups_of, pairs_of, read_table
from analyze.report.resampling import resampling_page
from analyze.report.stability import stability_page
from analyze.report.summary import what_was_run
from analyze.report.theory import theorems
from harvest.errors import UserError
from harvest.files import make_folder, read_json, write_text

HERE = pathlib.Path(__file__).parent
DRAWN_AT_FIRST = 14
"""Curves of a section that are drawn before the reader chooses: seven methods, without and with anchors."""


def build(
    experiment: str,
    dictionaries: list[tuple[str, pathlib.Path, pathlib.Path]],
    manifests: list[pathlib.Path],
    output: pathlib.Path,
    truth: tuple[pathlib.Path, pathlib.Path] | None = None,
    stability: pathlib.Path | None = None,
    models: Mapping[str, str] | None = None,
) -> None:
    """Write a report that opens from `file://` without a network: `index.html`, a page and a feature browser for each
    dictionary, and pages that compare them.

    `dictionaries`: name, folder of its measurements, folder of its training. `manifests`: those of the harvests, each
    in a folder called after its harvest; what `corpus.json` beside one says of its corpus is shown too. `truth`:
    recovery.csv and theory.json of an experiment on the bench, whose report also has `recovery.html` and `theory.html`.
    `stability`: stability.json. `models`: what the model of a harvest is called. Where there is something to compare
    there are `monosemanticity.html`, `resampling.html` and `stability.html`. Raises `UserError` where a measurement
    cannot be read.
    """
    table = read_table(truth[0]) if truth else {}
    matches = read_json(stability, "measurement") if stability is not None and stability.exists() else {}
    found = [read_dictionary(*paths, table.get(paths[0]), matches) for paths in dictionaries]
    harvests = [read_harvest(path, (models or {}).get(path.parent.name)) for path in manifests]
    for place, dictionary in enumerate(found):
        dictionary["harvest"] = harvest_of(dictionary["training"], harvests)
        dictionary["style"] = figures.style(place)
        if dictionary["recovery"] and dictionary["harvest"] is None:
            raise UserError(f"dictionary {dictionary['name']}: was trained on a store that none of the harvests made")
    pages = _truth_pages(found, harvests, truth[1]) if truth else {}
    pages |= monosemanticity_page(found) | resampling_page(found) | stability_page(matches, found)
    make_folder(output / "dictionaries")
    shutil.copytree(HERE / "static", output / "static", dirs_exist_ok=True)
    write_text(output / "static" / "plotly.min.js", get_plotlyjs())
    if truth:
        shutil.copy(truth[0], output / "recovery.csv")
    templates = _templates(experiment, harvests, list(pages))
    for dictionary in found:
        page = templates.get_template("dictionary.html").render(
            root="../", dictionary=dictionary, figures=figures.of_dictionary(dictionary)
        )
        write_text(output / "dictionaries" / f"{dictionary['name']}.html", page)
    names = [name for name, _, _ in dictionaries]
    for name, measured, trained in dictionaries:
        write_browser(name, measured, trained, output, names, experiment)
    for name, contents in pages.items():
        write_text(output / f"{name}.html", templates.get_template(f"{name}.html").render(root="", **contents))
    index = templates.get_template("index.html").render(
        root="",
        dictionaries=found,
        columns=columns_of(found),
        facts_of_run=what_was_run(found, harvests),
        figures=figures.of_experiment(found),
        key=[(d["name"], *d["style"]) for d in found],
    )
    write_text(output / "index.html", index)


def _templates(experiment: str, harvests: list[dict[str, Any]], pages: list[str]) -> jinja2.Environment:
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
        "pages": pages,
    }
    return templates


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
