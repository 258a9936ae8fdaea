"""What plotly draws: data and axes as JSON. Colours and fonts come from the page's style."""

from typing import Any

import numpy as np

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


def of_experiment(dictionaries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Training curves and firing rates of all dictionaries together."""
    loss = (
        "Mean squared error in units of the variance, on the batch trained on; with Matryoshka, the mean of its parts."
    )
    idle = "Latents that were active in no row of the batch just trained on."
    return [
        _curves(dictionaries, "reconstruction", "Reconstruction loss", "variance unexplained (share)", loss, "log"),
        _curves(dictionaries, "l0", "Active latents", "latents active in a row (mean)", "On the batch trained on."),
        _curves(dictionaries, "idle_share", "Idle latents", "latents idle (share)", idle),
        _density({d["name"]: d["summary"]["density"] for d in dictionaries}),
    ]


def of_dictionary(summary: dict[str, Any]) -> list[dict[str, Any]]:
    return [_density({"latents": summary["density"]})]


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
            "line": {"width": 2, "dash": DASHES[place % len(DASHES)]},
        }
        for place, d in enumerate(dictionaries)
    ]
    y = _axis(unit, scale) if scale == "log" else {**_axis(unit), "rangemode": "tozero"}
    return _figure(key, title, caption, traces, {**_axis("rows trained on"), "rangemode": "tozero"}, y)


def _density(densities: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "x": density["edges"],
            "y": [*density["counts"], density["counts"][-1]],
            "line": {"width": 2, "shape": "hv", "dash": DASHES[place % len(DASHES)]},
            "fill": "tozeroy",
        }
        for place, (name, density) in enumerate(densities.items())
    ]
    caption = "How many latents are active how often, over the whole store. Dead ones are left out."
    x, y = _axis("firing rate (share of rows)", "log"), _axis("latents in a quarter decade")
    return _figure("density", "Firing rates", caption, traces, x, y)


def _axis(title: str, scale: str = "linear") -> dict[str, Any]:
    axis: dict[str, Any] = {"title": {"text": title}, "type": scale, "automargin": True}
    # One label a decade, as a power of ten: plotly writes 10⁻⁵ as 10μ otherwise.
    return axis | ({"dtick": 1, "exponentformat": "power"} if scale == "log" else {})


def _figure(
    name: str, title: str, caption: str, traces: list[dict[str, Any]], x: dict[str, Any], y: dict[str, Any]
) -> dict[str, Any]:
    layout = {"xaxis": x, "yaxis": y, "showlegend": len(traces) > 1}
    return {"id": name, "title": title, "caption": caption, "data": traces, "layout": layout}
