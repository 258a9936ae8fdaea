"""What latents stand for, of all dictionaries together; with and without anchors in one colour."""

from typing import Any

from analyze.report.browser_figures import OF_LABELS, OF_LATENTS
from analyze.report.definitions import Figure
from analyze.report.figures import axis, curve, figure, style
from analyze.report.paper import class_means_of_clip
from analyze.report.recovery import setting_but

CLASS_MEANS = (
    Figure(
        "m_gt",
        "M_GT",
        "Share of classes, anchors left out, for which a latent’s raw inner product |⟨w_E, w⟩| with the class mean’s "
        "direction is above τ = 0.95 (arXiv 2512.05534, Table 2).",
    ),
    Figure(
        "m_ip",
        "M_IP",
        "Mean over classes, anchors left out, of the largest raw inner product |⟨w_E, w⟩| (arXiv 2512.05534, Table 2).",
    ),
    Figure("encoder_cosine", "Encoder cosine", "The same mean with encoder rows of unit length."),
    Figure("decoder_cosine", "Decoder cosine", "Mean over classes of the largest cosine with a decoder row."),
    Figure(
        "decoder_recovery", "Decoder recovery", "Share of classes that a decoder row meets with a cosine above 0.95."
    ),
)
LABEL_FIGURES = (
    Figure("f1", "F1", "Of the label’s best latent, the one with the largest F1."),
    Figure("precision", "Precision", "Of the rows in which the best latent is active, the share with the label."),
    Figure("recall", "Recall", "Of the label’s rows, the share in which the best latent is active."),
    Figure("auc", "AUC", "Chance that the best latent is more active in a row with the label than in one without."),
    Figure(
        "sharing",
        "Latents",
        "How many latents have this as their best label with at least half of that F1: a label of several is split.",
        "number",
    ),
    Figure(
        "absorption",
        "Absorption",
        "Share of the label’s rows in which no latent that stands for it is active, but a more special one is, "
        "most of whose rows carry the label (after Chanin et al. 2024, arXiv 2409.14507).",
        "share",
    ),
)
WITHOUT_LABELS = tuple(f for f in OF_LATENTS if f.key in ("token_purity", "score"))


def monosemanticity_page(dictionaries: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Page -> what it shows: `monosemanticity`, where it was measured."""
    found = [d for d in dictionaries if (m := d["meaning"]) and (m["sets"] or m["token_purity"] or m["score"])]
    if not found:
        return {}
    styles = _styles(found)
    sets = dict.fromkeys(name for d in found for name in d["meaning"]["sets"])
    return {
        "monosemanticity": {
            "sets": [_of_set(name, [d for d in found if name in d["meaning"]["sets"]], styles) for name in sets],
            "without_labels": [
                _distributions(
                    of, [(d, part) for d in found if (part := d["meaning"]["distributions"].get(of.key))], styles
                )
                for of in WITHOUT_LABELS
                if any(d["meaning"]["distributions"].get(of.key) for d in found)
            ],
            "key": [(d["name"], *styles[d["name"]]) for d in found],
            "label_figures": LABEL_FIGURES,
            "class_figures": CLASS_MEANS,
            "of_labels": OF_LABELS,
            "figures_without_labels": WITHOUT_LABELS,
            "summary_of": [d for d in found if d["meaning"]["token_purity"] or d["meaning"]["score"]],
        }
    }


def _styles(dictionaries: list[dict[str, Any]]) -> dict[str, tuple[int, str]]:
    """A dictionary with anchors is drawn in the colour of the one that is equal but for them, dotted."""
    places: dict[str, int] = {}
    found = {}
    for d in dictionaries:
        place = places.setdefault(setting_but("anchors", of=d), len(places))
        anchored = d["training"]["spec"].get("anchors") is not None
        found[d["name"]] = (place, "dot" if anchored else style(0)[1])
    return found


def _of_set(name: str, dictionaries: list[dict[str, Any]], styles: dict[str, tuple[int, str]]) -> dict[str, Any]:
    of = {d["name"]: d["meaning"]["sets"][name] for d in dictionaries}
    means = [(d, of[d["name"]]["class_means"]) for d in dictionaries]
    first = of[dictionaries[0]["name"]]
    labels = [
        {"label": label["label"], "rows": label["rows"], "of": [of[d["name"]]["labels"][place] for d in dictionaries]}
        for place, label in enumerate(first["labels"])
    ]
    return {
        "name": name,
        "dictionaries": dictionaries,
        "charts": [
            _distributions(f, [(d, of[d["name"]]["distributions"][f.key]) for d in dictionaries], styles, name)
            for f in OF_LABELS
        ],
        "figures": of,
        "labels": sorted(labels, key=lambda label: (-label["rows"], label["label"])),
        "class_means": [pair for pair in means if pair[1]["classes"]],
        "paper": class_means_of_clip() if any(_reads_clip(d) for d in dictionaries) else [],
    }


def _reads_clip(dictionary: dict[str, Any]) -> bool:
    return any("pooled" in site for site in dictionary["training"]["reads"])


def _distributions(
    of: Figure,
    parts: list[tuple[dict[str, Any], dict[str, Any]]],
    styles: dict[str, tuple[int, str]],
    label_set: str = "",
) -> dict[str, Any]:
    """Shares of live latents, so that dictionaries of other sizes can be compared."""
    traces = []
    for d, part in parts:
        total = max(1, sum(part["counts"]))
        line = curve(*styles[d["name"]])
        line["line"]["shape"] = "hv"
        shares = [count / total for count in part["counts"]]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": d["name"],
                "x": part["edges"],
                "y": [*shares, shares[-1]],
                **line,
            }
        )
    unit = "bits" if of.key == "entropy" else "share" if of.form == "share" else ""
    x = axis(f"{of.label} ({unit})" if unit else of.label)
    y = {**axis("live latents (share)"), "rangemode": "tozero"}
    return figure(f"{of.key}-{label_set}" if label_set else of.key, of.label, of.definition, traces, x, y)
