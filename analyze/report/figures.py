"""What plotly draws: data and axes as JSON. Colours and fonts come from the page's style."""

from typing import Any

import numpy as np

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
IN_LEGEND = 6
"""Curves that a chart's own legend names; more have a key beside the charts, where each can be switched off."""


def of_experiment(dictionaries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Firing rates of all dictionaries together, and training curves of those that were trained here."""
    loss = (
        "Mean squared error in units of the variance, on the batch trained on; with Matryoshka, the mean of its parts."
    )
    idle = "Latents that were active in no row of the batch just trained on."
    density = _density([(d["name"], d["summary"]["density"], d["style"]) for d in dictionaries])
    trained = [d for d in dictionaries if d["curves"]]
    if not trained:
        return [density]
    return [
        _curves(trained, "reconstruction", "Reconstruction loss", "variance unexplained (share)", loss, "log"),
        _curves(trained, "l0", "Active latents", "latents active in a row (mean)", "On the batch trained on."),
        _curves(trained, "idle_share", "Idle latents", "latents idle (share)", idle),
        density,
    ]


def of_dictionary(dictionary: dict[str, Any]) -> list[dict[str, Any]]:
    """Firing rates; where there was training, its curves; and how far latents write what they read."""
    summary, shares, cosines = dictionary["summary"], dictionary["summary"]["decoder_norm_share"], dictionary["cosines"]
    found = [_density([("latents", summary["density"], (0, "solid"))]), *([_shares(shares)] if shares else [])]
    if dictionary["curves"]:
        found += of_experiment([{**dictionary, "style": (0, "solid")}])[:2]
    return found + ([_cosine(cosines)] if cosines else [])


def _cosine(found: dict[str, Any]) -> dict[str, Any]:
    line = curve(0, "solid")
    line["line"]["shape"] = "hv"
    counts = [*found["counts"], found["counts"][-1]]
    trace = {"type": "scatter", "mode": "lines", "name": "latents", "x": found["edges"], "y": counts, **line}
    caption = (
        "Cosine between each live latent’s encoder row and its decoder row: near 1 it writes the direction it reads."
    )
    x, y = axis("encoder–decoder cosine"), {**axis("live latents in a fortieth"), "rangemode": "tozero"}
    return figure("cosines", "Encoder and decoder", caption, [{**trace, "fill": "tozeroy"}], x, y)


def style(place: int) -> tuple[int, str]:
    """Colour and dash of a dictionary by its place among all."""
    return place, DASHES[place % len(DASHES)]


def curve(series: int, dash: str) -> dict[str, Any]:
    """How a line is drawn: `series` is the place of its colour among the page's."""
    return {"line": {"width": 2, "dash": dash}, "meta": {"series": series}}


def bars(counts: np.ndarray, edges: np.ndarray) -> dict[str, Any]:
    """A histogram as an SVG path in a box of 100 × 24, and the activations at its ends; bins are equally wide."""
    filled = np.flatnonzero(counts)
    first, last = int(filled[0]), int(filled[-1]) + 1
    heights = 24 * counts[first:last] / counts.max()
    width = 100 / len(heights)
    path = "".join(f"M{i * width:.2f} 24v{-height:.2f}h{width:.2f}v{height:.2f}z" for i, height in enumerate(heights))
    return {"path": path, "low": float(edges[first]), "high": float(edges[last])}


def _curves(
    dictionaries: list[dict[str, Any]], key: str, title: str, unit: str, caption: str, scale: str = "linear"
) -> dict[str, Any]:
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": d["name"],
            "x": [line["tokens"] for line in d["curves"] if key in line],
            "y": [line[key] for line in d["curves"] if key in line],
            **curve(*d["style"]),
        }
        for d in dictionaries
    ]
    y = axis(unit, scale) if scale == "log" else {**axis(unit), "rangemode": "tozero"}
    return figure(key, title, caption, traces, {**axis("rows trained on"), "rangemode": "tozero"}, y)


def _density(densities: list[tuple[str, dict[str, list[float]], tuple[int, str]]]) -> dict[str, Any]:
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "x": density["edges"],
            "y": [*density["counts"], density["counts"][-1]],
            "line": {**line["line"], "shape": "hv"},
            "meta": line["meta"],
            **({"fill": "tozeroy"} if len(densities) <= IN_LEGEND else {}),
        }
        for name, density, style in densities
        for line in [curve(*style)]
    ]
    caption = "How many latents are active how often, over the whole store. Dead ones are left out."
    x, y = axis("firing rate (share of rows)", "log"), axis("latents in a quarter decade")
    return figure("density", "Firing rates", caption, traces, x, y)


def told_apart_by(of_sites: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Of two sites' shares the second's alone: the first has the rest."""
    return of_sites[1:] if len(of_sites) == 2 else of_sites


def _shares(shares: dict[str, Any]) -> dict[str, Any]:
    sites = shares["sites"]
    traces = []
    for place, (site, counts) in enumerate(told_apart_by(list(zip(sites, shares["counts"], strict=True)))):
        line = curve(*style(place))
        line["line"]["shape"] = "hv"
        traces.append(
            {"type": "scatter", "mode": "lines", "name": site, "x": shares["edges"], "y": [*counts, counts[-1]], **line}
        )
    where = f"share of decoder norm at {sites[1]}" if len(sites) == 2 else "share of decoder norm at a site"
    caption = (
        "How much of each live latent’s decoder norm lies at a site, in units of how far the site’s activations lie "
        "from their mean. At 0 or 1 a latent is of one site, or of one model, alone; in the middle all share it "
        "(Lindsey et al. 2024)."
    )
    return figure("shares", "Share of decoder norm", caption, traces, axis(where), axis("live latents in a twentieth"))


def axis(title: str, scale: str = "linear") -> dict[str, Any]:
    found: dict[str, Any] = {"title": {"text": title}, "type": scale, "automargin": True}
    # One label a decade, as a power of ten: plotly writes 10⁻⁵ as 10μ otherwise.
    return found | ({"dtick": 1, "exponentformat": "power"} if scale == "log" else {})


def figure(
    name: str, title: str, caption: str, traces: list[dict[str, Any]], x: dict[str, Any], y: dict[str, Any]
) -> dict[str, Any]:
    layout = {"xaxis": x, "yaxis": y, "showlegend": 1 < len(traces) <= IN_LEGEND}
    label = f"{title}: {y['title']['text']} against {x['title']['text']}"
    return {"id": name, "title": title, "label": label, "caption": caption, "data": traces, "layout": layout}
