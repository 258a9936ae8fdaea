"""How far the latents of two seeds are the same ones, as stability.json has it."""

from typing import Any
from urllib.parse import quote

from analyze.report.definitions import Figure
from analyze.report.figures import axis, curve, figure, style

MATCHED = (
    Figure(
        "mean",
        "Mean cosine",
        "Mean decoder cosine of live latents matched one to one, so that its sum is largest (Hungarian method, Kuhn "
        "1955).",
    ),
    Figure("median", "Median cosine", "Median of the same cosines."),
    Figure("above_0.9", "Above 0.9", "Share of the matched latents whose decoder cosine is above 0.9.", "share"),
)


def stability_page(found: dict[str, Any], dictionaries: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Page -> what it shows: `stability`, where two dictionaries differ in their seed alone or can be read together."""
    names = {d["name"] for d in dictionaries}
    pairs = [pair for pair in found.get("pairs", []) if set(pair["of"]) <= names]
    beside = sorted({tuple(sorted(pair)) for pair in found.get("partners", []) if set(pair) <= names})
    if not pairs and not beside:
        return {}
    return {
        "stability": {
            "pairs": pairs,
            "figures": MATCHED,
            "chart_of": _chart(pairs) if pairs else None,
            "beside": [(one, other, f"features/{quote(one)}.html#0&with={quote(other)}") for one, other in beside],
        }
    }


def _chart(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    traces = []
    for place, pair in enumerate(pairs):
        line = curve(*style(place))
        line["line"]["shape"] = "hv"
        total = max(1, sum(pair["counts"]))
        shares = [count / total for count in pair["counts"]]
        name = " and ".join(pair["of"])
        traces.append(
            {"type": "scatter", "mode": "lines", "name": name, "x": pair["edges"], "y": [*shares, shares[-1]], **line}
        )
    caption = "How many of the latents matched between two seeds have which decoder cosine."
    x, y = axis("decoder cosine of the match"), {**axis("matched latents (share)"), "rangemode": "tozero"}
    return figure("stability", "Matched latents", caption, traces, x, y)
