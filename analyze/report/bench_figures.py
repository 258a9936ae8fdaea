"""The paper's Figures 4, 5, 6 and 9, drawn from measurements."""

from typing import Any

import numpy as np

from analyze.report.figures import axis, curve, figure
from analyze.report.recovery import THRESHOLD, Group

SCORES = {
    "raw": ("Raw inner product", "largest |⟨w_E, w_p⟩|, as the paper’s Figure 6"),
    "encoder_cosine": ("Encoder cosine", "largest cosine with a row of W_E"),
    "decoder_cosine": ("Decoder cosine", "largest cosine with a column of W_D"),
}
KEYED = {"showlegend": False, "hovermode": "closest"}
"""Of charts whose curves the section's key names."""
INK = {"ink": True}
"""What is drawn in the colour of the text."""


def figure_6(groups: list[Group]) -> list[dict[str, Any]]:
    """M_GT against τ, for each of the three scores: the mean over a group's seeds."""
    return [_over_thresholds(groups, score, *named) for score, named in SCORES.items()]


def _over_thresholds(groups: list[Group], score: str, title: str, meaning: str) -> dict[str, Any]:
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": group.name,
            "x": group.members[0]["recovery"]["thresholds"],
            "y": group.curve(score),
            **curve(*group.members[0]["style"]),
        }
        for group in groups
    ]
    y = {**axis("features above τ (share)"), "range": [-0.02, 1.02]}
    drawn = figure(f"figure-6-{score}", title, f"Score: {meaning}.", traces, {**axis("τ"), "range": [0, 1]}, y)
    line = {"type": "line", "x0": THRESHOLD, "x1": THRESHOLD, "yref": "paper", "y0": 0, "y1": 1}
    drawn["layout"] |= {**KEYED, "shapes": [{**line, "line": {"width": 1, "dash": "dash"}}]}
    return drawn


def figure_5(groups: list[Group]) -> dict[str, Any] | None:
    """Absorption of every parent that was no anchor; None without a hierarchy."""
    traces = []
    for group in groups:
        shares, parents = _absorbed(group)
        series, dash = group.members[0]["style"]
        symbol = "circle-open" if dash == "dot" else "circle"
        if parents:
            marker = {"symbol": symbol, "size": 9, "line": {"width": 2}}
            trace = {"type": "scatter", "mode": "markers", "name": group.name, "x": parents, "y": shares}
            traces.append({**trace, "marker": marker, "meta": {"series": series}})
    if not traces:
        return None
    caption = (
        "Share of the rows with a parent on in which its latent is silent while the latent of a child that is on is "
        "active: the child has taken the parent’s place (theorem 3.8). Open circles are anchored; seeds are averaged; "
        "parents that were anchors are left out."
    )
    x, y = {**axis("parent (number of the feature)"), "dtick": 1}, {**axis("absorbed (share)"), "range": [-0.05, 1.05]}
    drawn = figure("figure-5", "Absorption, parent by parent", caption, traces, x, y)
    drawn["layout"] |= KEYED
    return drawn


def _absorbed(group: Group) -> tuple[list[float], list[int]]:
    """The mean over seeds of each parent's absorption, where it was measured."""
    measured: dict[int, list[float]] = {}
    for d in group.members:
        arrays = d["recovery"]["arrays"]
        for parent in np.flatnonzero(~arrays["anchored"] & ~np.isnan(arrays["absorption"])).tolist():
            measured.setdefault(parent, []).append(float(arrays["absorption"][parent]))
    parents = sorted(measured)
    return [sum(measured[p]) / len(measured[p]) for p in parents], parents


def figure_4(found: dict[str, Any]) -> dict[str, Any]:
    """Theorem 3.4's dictionary: directions as arrows."""
    numbered = [f"w<sub>{d + 1}</sub>" for d in range(len(found["features"]))]
    traces = [
        _arrows("features w_d", found["features"], "solid", INK, numbered),
        _arrows("rows of W_E", found["encoder"], "dash", {"series": 0}),
        _arrows("columns of W_D", found["decoder"], "solid", {"series": 1}),
    ]
    caption = (
        f"Found by training from start {found['seed']}: the loss is {found['loss']:.1g}, and {found['recovered']} of "
        f"{len(numbered)} features have a |cosine| above 0.95 with a row of W_E or a column of W_D."
    )
    x, y = axis("first dimension"), {**axis("second dimension"), "scaleanchor": "x"}
    drawn = figure("figure-4", "Figure 4: zero loss, nothing recovered", caption, traces, x, y)
    drawn["layout"]["hovermode"] = "closest"
    return drawn


def _arrows(
    name: str, tips: list[list[float]], dash: str, meta: dict[str, Any], texts: list[str] | None = None
) -> dict[str, Any]:
    """Lines from the origin in one trace, each with a head."""
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines+markers+text" if texts else "lines+markers",
        "name": name,
        "x": [x for tip in tips for x in (0, tip[0], None)],
        "y": [y for tip in tips for y in (0, tip[1], None)],
        "line": {"width": 2, "dash": dash},
        "marker": {"symbol": "arrow", "angleref": "previous", "size": [0, 12, 0] * len(tips), "opacity": 1},
        "meta": meta,
    }
    if texts:
        trace |= {"text": [text for each in texts for text in ("", each, "")], "textposition": "top right"}
    return trace


def figure_9(found: dict[str, Any]) -> dict[str, Any]:
    """The bench in three dimensions: features as lines from the origin, rows as points."""
    traces = []
    for d, tip in enumerate(found["features"]):
        rows = [row for row, strongest in zip(found["rows"], found["strongest"], strict=True) if strongest == d]
        name, look = f"feature {d + 1}", {"meta": {"series": d}, "legendgroup": str(d)}
        ends = [[0, 0, 0], tip]
        line = {"mode": "lines", "name": name, "line": {"width": 8}}
        points = {"mode": "markers", "name": f"rows of {name}", "showlegend": False, "marker": {"size": 2.5}}
        for trace, places in ((line, ends), (points, rows)):
            coordinates = dict(zip("xyz", map(list, zip(*places, strict=True)), strict=True)) if places else {}
            traces.append({"type": "scatter3d", **trace, **look, **coordinates})
    caption = (
        f"{len(found['features'])} features in three dimensions, no two with an inner product above "
        f"{found['interference']:.3f}, and {len(found['rows'])} rows at S = {found['sparsity']:g}, in the colour of "
        "their strongest feature; those with none on lie at the origin. Drag to turn."
    )
    drawn = figure("figure-9", "Figure 9: the bench in three dimensions", caption, traces, axis("x"), axis("y"))
    axes = {f"{letter}axis": {"title": {"text": letter}, "nticks": 5} for letter in "xyz"}
    camera = {"eye": {"x": 1.5, "y": 1.5, "z": 0.9}, "center": {"x": 0, "y": 0, "z": -0.15}}
    scene = {"aspectmode": "data", "camera": camera, **axes}
    drawn["layout"] = {"showlegend": True, "scene": scene, "margin": {"l": 0, "r": 0, "t": 30, "b": 0}}
    drawn["label"] = f"{drawn['title']}: {caption}"
    return drawn
