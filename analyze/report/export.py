"""Latents for other programs: a table as CSV, and features in the shape that SAEDashboard writes for Neuronpedia."""

import contextlib
import csv
import gzip
import io
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from analyze.report.measured import Measured
from harvest.files import write_bytes

NOT_MEASURED = (
    *("neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1", "correlated_neurons_indices"),
    *("correlated_neurons_l1", "correlated_neurons_pearson", "correlated_features_l1", "decoder_weights_dist"),
    *("logits_hist_data_bar_heights", "logits_hist_data_bar_values"),
)
TOP = -1
"""`bin_min`, `bin_max` and `bin_contains` of examples that are the top ones, and of no group."""


def write_csv(found: Measured, path: pathlib.Path) -> None:
    """A line a latent: `latent`, `anchor`, everything measured that is one number a latent, best labels by name."""
    columns: dict[str, list[Any]] = {
        "latent": list(range(found.count)),
        "anchor": [*found.anchors, *[""] * (found.count - len(found.anchors))],
    }
    for tensors in (found.latents, found.figures, found.geometry):
        for key, tensor in sorted(tensors.items()):
            if tensor.ndim == 1 and len(tensor) == found.count and key != "histogram_edges":
                columns[key] = list(tensor)  # numpy writes no more digits than the type has
    for name, labels in found.sets.items():
        if (key := f"{name}/best_label") in columns:
            columns[key] = [labels[label] if 0 <= label < len(labels) else "" for label in columns[key]]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    for line in zip(*columns.values(), strict=True):
        writer.writerow(["" if value != value else value for value in line])
    write_bytes(path, file.getvalue().encode(errors="replace"))  # names of files may be no Unicode


@contextlib.contextmanager
def neuronpedia_file(found: Measured, path: pathlib.Path) -> Iterator[Callable[[int, dict[str, Any]], None]]:
    """Yields what adds the live latents of a pack, whose examples it is given, to a file that is there at the end.

    The file is one batch, `{"model_id", "layer", "sae_set", "features": [...]}`. Examples are the top ones; what was
    not measured is an empty list. Tokens are as the corpus has them.
    """
    about = {"model_id": "", "layer": 0, "sae_set": found.name}
    beside, separator = path.with_name(f".{path.name}.partial"), "\n"
    with beside.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as file:

        def add(pack: int, examples: dict[str, Any]) -> None:
            nonlocal separator
            for feature in _features(found, pack, examples):
                text = json.dumps(feature, ensure_ascii=False, separators=(",", ":"))
                file.write(f"{separator}{text}".encode("utf-8", "replace"))
                separator = ",\n"

        file.write(f'{json.dumps(about, ensure_ascii=False)[:-1]}, "features": ['.encode())
        yield add
        file.write(b"\n]}\n")
    beside.replace(path)


def _features(found: Measured, pack: int, examples: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The live latents of a pack as features of Neuronpedia."""
    rows = found.summary["whole"]["rows"]
    edges = found.latents["histogram_edges"]
    for latent in found.latents_of(pack):
        of_latent = examples["latents"].get(str(latent))
        if of_latent is None:
            continue
        filled = np.flatnonzero(found.latents["histogram"][latent])
        bins = slice(filled[0], filled[-1] + 1) if len(filled) else slice(0)
        linked = found.latents.get("cofiring_latents", np.empty((found.count, 0)))[latent] >= 0
        yield {
            "feature_index": latent,
            **_lens(found, latent),
            **{key: [] for key in NOT_MEASURED},
            "correlated_features_indices": _of(found.latents, "cofiring_latents", latent, linked),
            "correlated_features_pearson": _of(found.latents, "cofiring_correlation", latent, linked),
            "frac_nonzero": float(found.latents["firing"][latent] / rows),
            # The middle of a bin on its logarithmic axis.
            "freq_hist_data_bar_values": _digits(np.sqrt(edges[:-1] * edges[1:])[bins]),
            "freq_hist_data_bar_heights": found.latents["histogram"][latent][bins].tolist(),
            **{"n_prompts_total": 0, "n_tokens_in_prompt": 0, "dataset": ""},
            "activations": list(_activations(of_latent["top"], examples["texts"])),
        }


def _activations(top: list[dict[str, Any]], texts: list[str]) -> Iterator[dict[str, Any]]:
    """The top examples with their tokens, or where there are none their row or image in place of a token."""
    for example in top:
        if "tokens" in example:
            tokens, values, at = [texts[i] for i in example["tokens"]], example["activations"], example["peak"]
        else:
            where = "image" if "image" in example else "row"
            tokens, values, at = [f"{where} {example[where]}"], [example["activation"]], 0
        bounds = {"bin_min": TOP, "bin_max": TOP, "bin_contains": TOP}
        yield {**bounds, "tokens": tokens, "values": values, "qualifying_token_index": at}


def _lens(found: Measured, latent: int) -> dict[str, Any]:
    """The largest logits, and the smallest."""
    parts = {}
    for side, ours in (("pos", "top"), ("neg", "bottom")):
        tokens = found.geometry.get(f"{ours}_tokens")
        numbers = [] if tokens is None else tokens[latent].tolist()
        parts[f"{side}_str"] = [found.tokens.get(number, "") for number in numbers]
        parts[f"{side}_values"] = _of(found.geometry, f"{ours}_logits", latent)
    return parts


def _of(tensors: dict[str, np.ndarray], key: str, latent: int, kept: Any = slice(None)) -> list[Any]:
    return _digits(tensors[key][latent][kept]) if key in tensors else []


def _digits(values: np.ndarray) -> list[Any]:
    return values.tolist() if np.issubdtype(values.dtype, np.integer) else [float(f"{v:.4g}") for v in values.tolist()]
