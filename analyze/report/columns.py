"""The table of all dictionaries: a column for every figure that some of them have."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from analyze.report.definitions import Figure


@dataclass(frozen=True)
class Column:
    figure: Figure
    of: Callable[[dict[str, Any]], float | None]


def _held_out(dictionary: dict[str, Any]) -> float | None:
    held_out = dictionary["summary"]["held_out"]
    value: float | None = held_out and held_out["explained_variance"]
    return value


def _fidelity(key: str) -> Callable[[dict[str, Any]], float | None]:
    def of(dictionary: dict[str, Any]) -> float | None:
        sites = (dictionary["fidelity"] or {"sites": {}})["sites"]
        site = sites.get("all") or next(iter(sites.values()), None)
        return site and site[key]

    return of


def _label_mean(key: str) -> Callable[[dict[str, Any]], float | None]:
    def of(dictionary: dict[str, Any]) -> float | None:
        sets = (dictionary["meaning"] or {"sets": {}})["sets"]
        means = [found["mean"][key] for found in sets.values() if found["mean"][key] is not None]
        return max(means) if means else None

    return of


def _mean(key: str) -> Callable[[dict[str, Any]], float | None]:
    def of(dictionary: dict[str, Any]) -> float | None:
        found = (dictionary["meaning"] or {}).get(key)
        return found and found["mean"]

    return of


COLUMNS = (
    Column(
        Figure(
            "explained_variance_held_out",
            "EV held out",
            "Explained variance, 1 − Σ‖x − x̂‖² / Σ‖x − x̄‖², over all written sites in the model’s own units, on the "
            "rows that training never saw; 1 is perfect, 0 no better than the mean (arXiv 2512.05534, eq. 3).",
        ),
        _held_out,
    ),
    Column(
        Figure("explained_variance", "EV", "Explained variance on the whole store, as on the rows held out (eq. 3)."),
        lambda d: d["summary"]["whole"]["explained_variance"],
    ),
    Column(
        Figure("l0", "l0", "Mean number of active latents per row, ‖σ(W_E x)‖₀, on the whole store (eq. 1).", "number"),
        lambda d: d["summary"]["whole"]["l0"],
    ),
    Column(Figure("target_l0", "l0 target", "The l0 that the config asked for.", "number"), lambda d: d["target_l0"]),
    Column(
        Figure("dead", "Dead", "Share of latents that are active in no row of the store (definition 3.1).", "share"),
        lambda d: d["summary"]["whole"]["dead_share"],
    ),
    Column(
        Figure(
            "loss_recovered",
            "Loss recovered",
            "(CE_zero − CE_spliced) / (CE_zero − CE_clean): how much of the model’s next-token loss the reconstruction "
            "keeps, between zeros in its place and the model as it is (Bricken et al. 2023).",
        ),
        _fidelity("loss_recovered"),
    ),
    Column(
        Figure(
            "kl",
            "KL",
            "Mean KL(clean ‖ spliced) of the model’s next-token distributions in nats, with the reconstruction spliced "
            "in (Gao et al. 2024).",
        ),
        _fidelity("kl"),
    ),
    Column(
        Figure(
            "f1",
            "F1",
            "Mean over live latents of the F1 of being active as a sign of the latent’s best label; of several label "
            "sets, the largest mean (van Rijsbergen 1979).",
        ),
        _label_mean("f1"),
    ),
    Column(
        Figure(
            "auc",
            "AUC",
            "Mean over live latents of the chance that a row with the latent’s best label has a larger activation than "
            "one without it (Mann and Whitney 1947); of several label sets, the largest mean.",
        ),
        _label_mean("auc"),
    ),
    Column(
        Figure(
            "token_purity",
            "Token purity",
            "Mean over live latents of the share of a latent’s rows that are its most common token.",
            "share",
        ),
        _mean("token_purity"),
    ),
    Column(
        Figure(
            "score",
            "MS score",
            "Mean over live latents of the activation-weighted mean pairwise similarity of their rows in an embedding "
            "that the dictionary does not read (Pach et al. 2025, arXiv 2504.02821).",
        ),
        _mean("score"),
    ),
    Column(
        Figure(
            "stability",
            "Stability",
            "Mean decoder cosine with the latents of the other seeds, matched one to one (Paulo and Belrose 2025).",
        ),
        lambda d: d["stability"],
    ),
    Column(Figure("latents", "Latents", "Learned units.", "number"), lambda d: d["summary"]["latents"]),
    Column(
        Figure("trained_on", "Trained on", "Rows seen in training, over all epochs.", "number"),
        lambda d: d["trained_on"],
    ),
    Column(
        Figure("seconds", "Time", "Training time, in the last uninterrupted run.", "duration"),
        lambda d: d["training"]["seconds"],
    ),
)


def columns_of(dictionaries: list[dict[str, Any]]) -> list[Column]:
    """Those that some dictionary has a figure for."""
    return [column for column in COLUMNS if any(column.of(d) is not None for d in dictionaries)]
