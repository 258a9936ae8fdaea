"""What the pages show of each dictionary and each harvest, read from their files."""

import json
import pathlib
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from analyze.report import figures
from analyze.report.recovery import matches, read_recovery
from harvest.errors import UserError
from harvest.files import read_json

SHOWN = 10
"""Latents in each short table of a dictionary's page."""


def read_dictionary(
    name: str, measured: pathlib.Path, trained: pathlib.Path, line: dict[str, str] | None, stability: dict[str, Any]
) -> dict[str, Any]:
    """Everything that was measured of a dictionary as a whole, and the latents that its page names.

    `line`: its own of recovery.csv, where there is a truth. `stability`: what stability.json says, or nothing. Files
    that a run did not make are None.
    """
    summary, training = (
        read_json(folder / file, "measurement")
        for folder, file in ((measured, "summary.json"), (trained, "training.json"))
    )
    try:
        tensors = load_file(measured / "latents.safetensors")
        lines, events = (
            [json.loads(line) for line in (trained / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
            for name in ("metrics", "resampling")
        )
    except OSError as error:
        raise UserError(f"dictionary {name}: a measurement cannot be read ({error})") from None
    recovery = read_recovery(line, measured) if line else None
    meaning = _optional(measured / "monosemanticity.json")
    return {
        "name": name,
        "summary": summary,
        "training": training,
        "trained_on": training["last"] and training["last"]["tokens"],
        "target_l0": None if "loaded" in training else next(iter(training["spec"]["sparsity"].values()))["l0"],
        "curves": lines,
        "events": events,
        "recovery": recovery,
        "fidelity": _optional(measured / "fidelity.json"),
        "meaning": meaning,
        "stability": _mean_match(name, stability),
        "cosines": _cosines(measured / "geometry.safetensors", tensors["firing"]),
        "matched": _matched_latents(recovery, summary, tensors) if recovery else [],
        "lists": _short_lists(measured, summary, tensors, meaning),
    }


def _optional(path: pathlib.Path) -> Any:
    return read_json(path, "measurement") if path.exists() else None


def _mean_match(name: str, stability: dict[str, Any]) -> float | None:
    """The mean matched cosine with the other seeds."""
    found = [pair["matched_cosine"]["mean"] for pair in stability.get("pairs", []) if name in pair["of"]]
    found = [mean for mean in found if mean is not None]
    return sum(found) / len(found) if found else None


def _cosines(path: pathlib.Path, firing_F: np.ndarray) -> dict[str, Any] | None:
    """How many live latents have which encoder-decoder cosine; None where they read one space and write another."""
    if not path.exists():
        return None
    cosine_f = load_file(path)["encoder_decoder_cosine"][firing_F > 0]
    cosine_f = cosine_f[~np.isnan(cosine_f)]
    counts, edges = np.histogram(cosine_f.clip(-1, 1), np.linspace(-1, 1, 41))
    return {"edges": edges.tolist(), "counts": counts.tolist()} if len(cosine_f) else None


def _matched_latents(
    recovery: dict[str, Any], summary: dict[str, Any], tensors: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    """The latents that are matched to a feature, the most frequent first."""
    found = []
    for number, match in matches(recovery).items():
        fired = int(tensors["firing"][number])
        found.append(
            {
                "latent": number,
                "match": match,
                "rows": fired,
                "rate": fired / summary["whole"]["rows"],
                "mean": float(tensors["mean_activation"][number]),
                "max": float(tensors["max_activation"][number]),
                "histogram": figures.bars(tensors["histogram"][number], tensors["histogram_edges"]) if fired else None,
            }
        )
    return sorted(found, key=lambda latent: (-latent["rows"], latent["latent"]))


def _short_lists(
    measured: pathlib.Path, summary: dict[str, Any], tensors: dict[str, np.ndarray], meaning: dict[str, Any] | None
) -> list[dict[str, Any]]:
    """The latents at the end of some order: `title`, `unit` and `latents`, each with number, figure and firing rate."""
    rate_F = tensors["firing"] / summary["whole"]["rows"]
    orders: list[tuple[str, str, str, np.ndarray]] = [("Densest", "active in", "share", rate_F)]
    if meaning is not None:
        found = load_file(measured / "monosemanticity.safetensors")
        orders += [(f"Best for {name}", "F1", "decimal", found[f"{name}/f1"]) for name in meaning["sets"]]
        if meaning["token_purity"] is not None:
            # One token in a few rows is no achievement.
            frequent_F = np.where(tensors["firing"] >= 100, found["token_purity"], np.nan)
            orders.append(("Purest in one token", "token purity", "share", frequent_F))
        if meaning["score"] is not None:
            orders.append(("Of one kind", "MS score", "decimal", found["score"]))
    lists = []
    for title, unit, form, figure_F in orders:
        order_F = np.argsort(-np.where((rate_F > 0) & ~np.isnan(figure_F), figure_F, -np.inf), kind="stable")[:SHOWN]
        latents = [
            {"latent": int(latent), "figure": float(figure_F[latent]), "rate": float(rate_F[latent])}
            for latent in order_F
            if rate_F[latent] > 0 and not np.isnan(figure_F[latent])
        ]
        if latents:
            lists.append({"title": title, "unit": unit, "form": form, "latents": latents})
    return lists


def read_harvest(manifest: pathlib.Path, model: str | None) -> dict[str, Any]:
    """Its name, what its model is called, its manifest, what is known of its corpus, and what that left out."""
    corpus = _optional(manifest.with_name("corpus.json"))
    return {
        "name": manifest.parent.name,
        "model": model,
        "manifest": read_json(manifest, "manifest"),
        "corpus": corpus and {key: value for key, value in corpus.items() if key != "left_out_names"},
        "left_out": (corpus or {}).get("left_out_names", []),
    }


def harvest_of(training: dict[str, Any], harvests: list[dict[str, Any]]) -> str | None:
    """The harvest that a dictionary was trained on; where there are several, its sites say whose they are."""
    name = next((h["name"] for h in harvests if h["manifest"]["fingerprint"] == training["store"]), None)
    named = {site.partition("/")[0] for site in [*training["reads"], *training["writes"]] if "/" in site}
    return name or ", ".join(h["name"] for h in harvests if h["name"] in named) or None
