"""A results folder as an experiment leaves it, with made-up measurements: for tests of what the report shows.

`write_results` makes one with `DICTIONARIES`: text with and without anchors, patches of images, whole images, and one
that was measured without a model or labels. Every text in it is hostile to a page that trusts its data. Latent 0 is
dead, latent 1 dense; `2 + i` of text has the token `VOCABULARY[i % len(VOCABULARY)]` as the peak of its examples.
"""

import gzip
import io
import json
import pathlib
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from analyze.latents import histogram_edges
from train.config import DictionarySpec

SCRIPT = "<script>alert(1)</script>"
HOSTILE = [
    SCRIPT,
    "\"quoted' &amp;",
    "🤗",
    "\u202eright to left",
    "\0",
    "\n",
    "</script>",
    "\u2028",
    "שלום",
    "\t",
    "<!--",
]
VOCABULARY = [*HOSTILE, *(f" {word}" for word in ("the", "of", "river", "tensor", "Zürich", "return", "def", "loss"))]
SETS = {"language": ["nynorsk", "deutsch", "עברית", SCRIPT], "topic": [f"topic {i}" for i in range(40)]}
DICTIONARIES = ("sae", "sae-anchored", "patches", "images", "bare")
ANCHORS = ["deutsch", SCRIPT]
ROWS, HELD_OUT, EXAMPLES, SITE = 20_000, 2_000, 20, "layers.1.resid_post"
GRID, PIXELS, IMAGES = (4, 6), (64, 96), 40
EDGES = histogram_edges(3.0)


def write_results(folder: pathlib.Path, latents: int = 300, names: tuple[str, ...] = DICTIONARIES) -> pathlib.Path:
    """The folder, with `analyze/`, `train/`, `anchors/`, `harvest/docs/` and `stability.json`."""
    for seed, name in enumerate(names):
        write_dictionary(folder, name, latents, seed)
    write_stability(folder, [pair for pair in (("sae", "sae-anchored"),) if set(pair) <= set(names)], latents)
    _write(folder / "harvest/docs/activations.manifest.json", _manifest())
    _write(folder / "harvest/docs/corpus.json", {"documents": 12, "hostile": SCRIPT})
    return folder


def write_dictionary(folder: pathlib.Path, name: str, latents: int, seed: int = 0) -> None:
    """Its measurements and its training. Names say what it is of: `DICTIONARIES`."""
    analyzed, rng = folder / "analyze" / name, np.random.default_rng(seed)
    kind = name if name in ("patches", "images") else "text"
    sets = {} if name == "bare" else SETS
    firing_F = rng.integers(30, ROWS // 20, latents)
    firing_F[:2] = 0, ROWS // 2
    tensors = _latents(rng, firing_F)
    packs = [_pack(rng, kind, sets, tensors, first) for first in range(0, latents, 256)]
    _summary(analyzed, name, kind, sets, firing_F, len(packs))
    if name == "bare":
        tensors = {key: value for key, value in tensors.items() if not key.startswith(("cofiring", "sample"))}
    save_file(tensors, analyzed / "latents.safetensors")
    (analyzed / "examples").mkdir(exist_ok=True)
    for number, pack in enumerate(packs):
        text = json.dumps(pack, ensure_ascii=False, separators=(",", ":"))
        (analyzed / "examples" / f"{number}.json.gz").write_bytes(gzip.compress(text.encode(), 1, mtime=0))
    if kind != "text":
        _thumbnails(analyzed / "images", rng)
    if sets:
        _labels(analyzed, rng, firing_F, sets)
        _geometry(analyzed, rng, latents, kind, sets)
        if kind == "text":
            _write(analyzed / "fidelity.json", _fidelity())
    _training(folder, name, latents, seed)


def write_stability(folder: pathlib.Path, pairs: list[tuple[str, str]], latents: int) -> None:
    found = []
    for one, other in pairs:
        rng = np.random.default_rng(len(found))
        cosine_F = rng.uniform(0, 1, latents).astype(np.float32)
        edges = np.linspace(-1, 1, 81)
        above = float((cosine_F > 0.9).mean())
        live = [latents - 1, latents - 1]
        matched = {"mean": float(cosine_F.mean()), "median": float(np.median(cosine_F)), "above_0.9": above}
        counts = np.histogram(cosine_F, edges)[0].tolist()
        figures = {"matched_cosine": matched, "edges": edges.tolist(), "counts": counts, "live": live}
        found.append({"of": [one, other], **figures})
        (folder / "stability").mkdir(parents=True, exist_ok=True)
        for names in ((one, other), (other, one)):
            partner_F = rng.integers(0, latents, latents).astype(np.int32)
            path = folder / "stability" / f"{names[0]}--{names[1]}.safetensors"
            save_file({"partner": partner_F, "cosine": cosine_F}, path)
    partners = [list(names) for one, other in pairs for names in ((one, other), (other, one))]
    _write(folder / "stability.json", {"pairs": found, "partners": partners})


def _latents(rng: np.random.Generator, firing_F: np.ndarray) -> dict[str, np.ndarray]:
    latents = len(firing_F)
    live_F = firing_F > 0
    weights_H = np.exp(-(((np.arange(len(EDGES) - 1) - 44) / 6.0) ** 2))
    example_activations = -np.sort(-rng.uniform(4, 12, (latents, EXAMPLES)).astype(np.float32)) * live_F[:, None]
    sampled = np.sort(rng.uniform(0.1, 4, (latents, 50)).astype(np.float32)).reshape(latents, 10, 5)
    rows = rng.integers(0, ROWS, (latents, EXAMPLES + 50))
    return {
        "firing": firing_F,
        "firing_held_out": firing_F // 10,
        "mean_activation": rng.uniform(1, 3, latents) * live_F,
        "max_activation": example_activations[:, 0].copy(),
        "histogram": np.stack([rng.multinomial(count, weights_H / weights_H.sum()) for count in firing_F]),
        "histogram_edges": EDGES,
        "example_rows": np.where(live_F[:, None], rows[:, :EXAMPLES], -1),
        "example_activations": example_activations,
        "sample_rows": np.where(live_F[:, None, None], rows[:, EXAMPLES:].reshape(latents, 10, 5), -1),
        "sample_activations": sampled * live_F[:, None, None],
        "cofiring_latents": np.where(live_F[:, None], _others(rng, latents), -1).astype(np.int32),
        "cofiring_jaccard": -np.sort(-rng.uniform(0, 0.6, (latents, 8))).astype(np.float32),
        "cofiring_correlation": -np.sort(-rng.uniform(0, 0.7, (latents, 8))).astype(np.float32),
    }


def _others(rng: np.random.Generator, latents: int) -> np.ndarray:
    """Eight other latents for each."""
    return (np.arange(latents)[:, None] + rng.integers(1, latents, (latents, 8))) % latents


def _pack(
    rng: np.random.Generator, kind: str, sets: dict[str, list[str]], tensors: dict[str, np.ndarray], first: int
) -> dict[str, Any]:
    texts = VOCABULARY if kind == "text" else []
    found = {}
    for latent in range(first, min(first + 256, len(tensors["firing"]))):
        if tensors["firing"][latent]:
            top = zip(tensors["example_rows"][latent], tensors["example_activations"][latent], strict=True)
            groups = zip(tensors["sample_rows"][latent], tensors["sample_activations"][latent], strict=True)
            found[str(latent)] = {
                "top": [_example(rng, kind, sets, latent, *each) for each in top],
                "quantiles": [[_example(rng, kind, sets, latent, *e) for e in zip(*g, strict=True)] for g in groups],
            }
    return {"texts": texts, "latents": found}


def _example(
    rng: np.random.Generator, kind: str, sets: dict[str, list[str]], latent: int, row: int, activation: float
) -> dict[str, Any]:
    value = float(f"{activation:.4g}")
    labels = {name: names[(latent + int(row) % 2) % len(names)] for name, names in sets.items()}
    found: dict[str, Any] = {"row": int(row), "activation": value, "labels": labels}
    if kind == "text":
        peak, count = int(rng.integers(0, 13)), int(rng.integers(13, 22))
        tokens = rng.integers(0, len(VOCABULARY), count)
        tokens[peak] = (latent - 2) % len(VOCABULARY)
        around = np.where(rng.uniform(size=count) < 0.2, rng.uniform(0, value, count), 0)
        around[peak] = value
        activations = [float(f"{each:.3g}") for each in around]
        return found | {"tokens": tokens.tolist(), "activations": activations, "peak": peak}
    found["image"] = int(row) % IMAGES
    if kind == "patches":
        heat = np.where(rng.uniform(size=GRID) < 0.3, rng.uniform(0, value, GRID), 0)
        down, across = divmod(int(row) % (GRID[0] * GRID[1]), GRID[1])
        heat[down, across] = value
        found |= {"patch": [down, across], "heat": [float(f"{each:.3g}") for each in heat.ravel()]}
    return found


def _summary(
    folder: pathlib.Path, name: str, kind: str, sets: dict[str, list[str]], firing_F: np.ndarray, packs: int
) -> None:
    edges = 10.0 ** (np.arange(-20, 1) / 4)
    counts = np.histogram(firing_F[firing_F > 0] / ROWS, edges)[0].tolist()
    whole = {
        "rows": ROWS,
        "explained_variance": 0.7123,
        "explained_variance_by_site": {SITE: 0.7123},
        "l0": float(firing_F.sum() / ROWS),
        "dead_share": float((firing_F == 0).mean()),
    }
    summary = {
        "store": "ab" * 32,
        "latents": len(firing_F),
        "whole": whole,
        "held_out": {**whole, "rows": HELD_OUT, "explained_variance": 0.6987},
        "density": {"edges": edges.tolist(), "counts": counts},
        "decoder_norm_share": None,
        "labels": sets,
        "packs": packs,
    }
    if kind != "text":
        grid = list(GRID) if kind == "patches" else None
        summary["images"] = {"grid": grid, "pixels": list(PIXELS), "count": IMAGES}
    _write(folder / "summary.json", summary)


def _labels(folder: pathlib.Path, rng: np.random.Generator, firing_F: np.ndarray, sets: dict[str, list[str]]) -> None:
    live_F, latents = firing_F > 0, len(firing_F)
    tensors, figures, found = {}, {}, {}
    for name, names in sets.items():
        labels = len(names)
        rows_L = np.full(labels, ROWS // labels)
        shares_FL = rng.dirichlet(np.full(labels, 0.3), latents)
        count_FL = np.minimum(shares_FL * firing_F[:, None], rows_L).astype(np.int32)
        best_F = count_FL.argmax(1)
        hits_F = count_FL[np.arange(latents), best_F]
        precision_F, recall_F = hits_F / np.maximum(firing_F, 1), hits_F / rows_L[best_F]
        tensors |= {
            f"{name}/rows": rows_L,
            f"{name}/firing": count_FL,
            f"{name}/sum": (count_FL * rng.uniform(1, 3, (latents, 1))).astype(np.float32),
        }
        of_set = {
            "precision": precision_F,
            "recall": recall_F,
            "f1": 2 * precision_F * recall_F / np.maximum(precision_F + recall_F, 1e-9),
            "auc": rng.uniform(0.5, 1, latents),
            "entropy": rng.uniform(0, np.log2(labels), latents),
            "purity": rng.integers(1, 21, latents) / 20,
        }
        figures[f"{name}/best_label"] = best_F.astype(np.int32)
        figures |= {f"{name}/{figure}": np.where(live_F, value, np.nan) for figure, value in of_set.items()}
        found[name] = {"names": names, **_of_labels(names, rows_L, of_set, live_F)}
    figures["token_purity"] = np.where(live_F, rng.integers(1, 21, latents) / 20, np.nan)
    figures["score"] = np.where(live_F, rng.uniform(-0.2, 1, latents), np.nan)
    save_file(tensors, folder / "labels.safetensors")
    save_file(
        {name: value if value.dtype == np.int32 else value.astype(np.float32) for name, value in figures.items()},
        folder / "monosemanticity.safetensors",
    )
    centre = {"mean": 0.5, "median": 0.45}
    whole = {"sets": found, "token_purity": {**centre, "what": "token"}, "score": {**centre, "embedding": "final"}}
    whole["distributions"] = {
        key: _distribution(figures[key], low) for key, low in (("token_purity", 0), ("score", -1))
    }
    _write(folder / "monosemanticity.json", whole)


def _of_labels(names: list[str], rows_L: np.ndarray, of_set: dict[str, Any], live_F: np.ndarray) -> dict[str, Any]:
    labels = [
        {
            **{"label": label, "rows": int(rows), "best_latent": place % len(live_F), "sharing": place % 4},
            **{figure: float(of_set[figure][place % len(live_F)]) for figure in ("f1", "precision", "recall", "auc")},
            **{"absorption": None if place % 3 else 0.125, "anchored": place < 2},
            **{"inner_product": 0.8, "encoder_cosine": 0.7, "decoder_cosine": 0.9},
        }
        for place, (label, rows) in enumerate(zip(names, rows_L, strict=True))
    ]
    central = {
        statistic: {figure: float(by(values[live_F])) for figure, values in of_set.items()}
        for statistic, by in (("mean", np.mean), ("median", np.median))
    }
    means = {"m_gt": 0.25, "m_ip": 0.8, "encoder_cosine": 0.7, "decoder_cosine": 0.9, "decoder_recovery": 0.5}
    return {
        **{"labels": labels, "live": int(live_F.sum()), **central},
        "distributions": {figure: _distribution(values, 0) for figure, values in of_set.items()},
        "class_means": {**means, "classes": len(names) - 2, "anchored": 2},
    }


def _distribution(values: np.ndarray, lowest: float) -> dict[str, list[float]]:
    counts, edges = np.histogram(values[~np.isnan(values)], 20, (lowest, max(1.0, float(np.nanmax(values)))))
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def _geometry(
    folder: pathlib.Path, rng: np.random.Generator, latents: int, kind: str, sets: dict[str, list[str]]
) -> None:
    tensors: dict[str, np.ndarray] = {
        "neighbours": _others(rng, latents).astype(np.int32),
        "neighbour_cosines": -np.sort(-rng.uniform(0, 0.9, (latents, 8))).astype(np.float32),
        "encoder_decoder_cosine": rng.uniform(0.2, 1, latents).astype(np.float32),
    }
    about: dict[str, Any] = {"sets": sets, "site": SITE, "tokens": {}}
    if kind == "text":
        about["tokens"] = {str(number): text for number, text in enumerate(VOCABULARY)}
        for side, sign in (("top", -1), ("bottom", 1)):
            tensors[f"{side}_tokens"] = rng.integers(0, len(VOCABULARY), (latents, 10)).astype(np.int32)
            logits = -sign * np.sort(rng.uniform(0, 4, (latents, 10)))[:, ::-1]
            tensors[f"{side}_logits"] = np.ascontiguousarray(logits, np.float32)
    for name, names in sets.items():
        tensors[f"{name}/nearest_labels"] = rng.integers(0, len(names), (latents, 5)).astype(np.int32)
        cosines = -np.sort(-rng.uniform(0, 1, (latents, 5)))
        tensors[f"{name}/nearest_label_cosines"] = cosines.astype(np.float32)
    save_file(tensors, folder / "geometry.safetensors")
    _write(folder / "geometry.json", about)


def _fidelity() -> dict[str, Any]:
    figures = {"ce_clean": 3.2, "ce_spliced": 3.5, "ce_zero": 9.1, "loss_recovered": 0.949, "kl": 0.21}
    return {"rows": ROWS, "contexts": 80, "sites": {"all": figures, SITE: figures}, "not_measured": None}


def _thumbnails(folder: pathlib.Path, rng: np.random.Generator) -> None:
    folder.mkdir(exist_ok=True)
    for number in range(IMAGES):
        noise = rng.integers(0, 255, (4, 6, 3)).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).resize((64, 43)).save(file, "JPEG", quality=80)
        (folder / f"{number}.jpg").write_bytes(file.getvalue())
    _write(folder / "names.json", {str(number): f"photos/{SCRIPT}/{number}.png" for number in range(IMAGES)})


def _training(folder: pathlib.Path, name: str, latents: int, seed: int) -> None:
    anchors = {"source": "labels.language", "count": len(ANCHORS)} if name == "sae-anchored" else None
    spec = DictionarySpec.model_validate(
        {
            **{"reads": [SITE], "latents": latents, "sparsity": {"topk": {"l0": 8}}, "tokens": 40_000, "batch": 400},
            **{"seed": seed, "anchors": anchors},
        }
    )
    lines = [
        {
            **{"step": step, "tokens": step * 400, "loss": 0.5, "reconstruction": 1 / (1 + step), "unexplained": 0.4},
            **{"l0": 8.0, "idle_share": 0.1, "dead_share": 0.05},
        }
        for step in range(1, 101, 11)
    ]
    trained = folder / "train" / name
    training = {
        **{"spec": spec.model_dump(), "kind": spec.kind, "reads": [SITE], "writes": [SITE], "widths": {SITE: 64}},
        **{"steps": 100, "last": lines[-1], "versions": {"torch": "2"}, "store": "ab" * 32},
        **{"rows_trained_on": ROWS - HELD_OUT, "seconds": 12.5, "tokens_per_second": 3200.0, "device": "cpu"},
        **{"peak_memory_bytes": 10**8, "processes": 1, "dictionaries_in_this_pass": 1},
    }
    _write(trained / "training.json", training)
    (trained / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (trained / "resampling.jsonl").write_text("")
    if anchors:
        (folder / "anchors").mkdir(parents=True, exist_ok=True)
        directions = np.eye(len(ANCHORS), 64, dtype=np.float32)
        metadata = {"names": json.dumps(ANCHORS)}
        save_file({"read": directions, "written": directions}, folder / "anchors" / f"{name}.safetensors", metadata)


def _manifest() -> dict[str, Any]:
    facts = {"width": 64, "mean_norm": 8.0, "total_variance": 9.0}
    about = {"fingerprint": "ab" * 32, "rows": ROWS, "dtype": "float32", "sites": {SITE: facts}}
    return {**about, "source": {"model": "tiny", "corpus": SCRIPT}, "created_with": {"torch": "2"}}


def _write(path: pathlib.Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False))
