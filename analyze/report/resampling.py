"""Dictionaries that were resampled beside the same ones that were not, as Figure 7 of arXiv 2512.05534 has them."""

import math
from dataclasses import dataclass
from typing import Any

from analyze.report.definitions import Figure
from analyze.report.figures import axis, curve, figure
from analyze.report.recovery import setting_but
from train.config import DictionarySpec

LOSS = Figure(
    "unexplained",
    "Loss",
    "Mean squared error of the whole dictionary in units of the variance, that is the share of variance unexplained, "
    "on the batch trained on (eq. 3 of arXiv 2512.05534).",
)
DEAD = Figure(
    "dead_share",
    "Dead",
    "Share of latents that fired in none of the last rows trained on: a tenth of the run, 10M rows at most, or all so "
    "far.",
    "share",
)
L0 = Figure("l0", "Active latents", "Mean number of latents active in a row, on the batch trained on.", "number")
FINAL = (
    Figure(
        "explained_variance",
        "EV held out",
        "Explained variance, 1 − Σ‖x − x̂‖² / Σ‖x − x̄‖², in the model’s own units, on the rows that training never saw.",
    ),
    Figure("store_dead", "Dead in the store", "Share of latents that are active in no row of the store.", "share"),
)


@dataclass(frozen=True)
class Comparison:
    """A dictionary that was resampled, and the one that is equal but for that, if there is one."""

    number: int
    without: dict[str, Any] | None
    resampled: dict[str, Any]

    @property
    def both(self) -> list[dict[str, Any]]:
        return [d for d in (self.without, self.resampled) if d]

    @property
    def events(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.resampled["events"]
        return found

    @property
    def spec(self) -> DictionarySpec:
        return DictionarySpec.model_validate(self.resampled["training"]["spec"])

    def charts(self) -> list[dict[str, Any]]:
        return [
            _chart(self, LOSS, "variance unexplained (share)", "log"),
            *(
                _chart(self, of, unit)
                for of, unit in ((DEAD, "latents dead (share)"), (L0, "latents active in a row (mean)"))
            ),
        ]


def resampling_page(dictionaries: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Page -> what it shows: `resampling`, where a dictionary was."""
    without = {
        setting_but("resample", of=d): d for d in reversed(dictionaries) if d["training"]["spec"]["resample"] is None
    }
    resampled = [d for d in dictionaries if d["training"]["spec"]["resample"] is not None]
    comparisons = [
        Comparison(number, without.get(setting_but("resample", of=d)), d) for number, d in enumerate(resampled)
    ]
    if not comparisons:
        return {}
    return {
        "resampling": {"comparisons": comparisons, "during": (LOSS, DEAD, L0), "final": FINAL, "value_of": value_of}
    }


def value_of(dictionary: dict[str, Any], of: Figure) -> float | None:
    """A figure at the end: of the last line logged, or of the measurement of the finished dictionary."""
    summary = dictionary["summary"]
    if of.key == "store_dead":
        return float(summary["whole"]["dead_share"])
    if of.key == "explained_variance":
        return float(summary["held_out"]["explained_variance"]) if summary["held_out"] else None
    return float(dictionary["training"]["last"][of.key])


def _chart(compared: Comparison, of: Figure, unit: str, scale: str = "linear") -> dict[str, Any]:
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": d["name"],
            "x": [line["tokens"] for line in d["curves"]],
            "y": [line[of.key] for line in d["curves"]],
            **curve(d["style"][0], "solid" if d is compared.resampled else "dash"),
        }
        for d in compared.both
    ]
    values = [y for trace in traces for y in trace["y"]]
    ends = {"tickvals": _ticks(min(values), max(values))} if scale == "log" else {"rangemode": "tozero"}
    y, x = {**axis(unit, scale), **ends}, {**axis("rows trained on"), "rangemode": "tozero"}
    drawn = figure(f"{of.key}-{compared.number}", of.label, of.definition, traces, x, y)
    line = {"type": "line", "yref": "paper", "y0": 0, "y1": 1}
    drawn["layout"]["shapes"] = [
        {**line, "x0": event["tokens"], "x1": event["tokens"], "line": {"width": 1, "dash": "dot"}}
        for event in compared.events
    ]
    return drawn


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers on a logarithmic axis that may span less than a decade."""
    digits = (1, 2, 3, 4, 5, 6, 8) if high < 10 * low else (1, 2, 5)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [float(f"{digit}e{decade}") for decade in decades for digit in digits]
