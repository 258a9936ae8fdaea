"""Whether latents stand for one thing: one label, one token, rows that are alike.

Shapes: F latents, L labels of a set, B rows.
"""

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dask
import numpy as np
from safetensors.numpy import save_file

from analyze.class_means import class_directions, over_classes, sites_of
from analyze.encoded import EncodedRows
from analyze.judging import Pairs, judge_latents
from analyze.labelled import Judged, absorbed_rows, entropy, purity
from analyze.latents import LatentStatistics
from analyze.similarity import Similarity, ranges
from analyze.windows import column_at
from harvest.errors import UserError
from harvest.files import write_json
from harvest.joined import Place, check_same_rows, open_store
from harvest.location import folder_of
from harvest.progress import progress
from harvest.store import Store
from harvest.tasks import compute, merged
from train.anchors import label_sums, load_anchors
from train.dictionary import Dictionary

BINS = 20


@dataclass(frozen=True)
class Embedding:
    """Vectors that rows are compared by: a site of the dictionary's store, or of another one with the same rows."""

    site: str
    place: Place | None = None


@dataclass(frozen=True)
class Yardstick:
    """What latents are held against, checked before anything is measured."""

    anchored: Mapping[str, list[str]]
    """Label set -> the labels whose means were anchors, which are left out."""
    embedding: tuple[Store, str] | None
    """A store and its site."""
    called: str
    """What a report calls the embedding."""

    @staticmethod
    def of(
        store: Store, facts: Mapping[str, Any], anchors: pathlib.Path | None, embedding: Embedding | None
    ) -> "Yardstick":
        """Raises `UserError` where labels were anchors and their file is not given, and where the embedding is not
        there, of other rows, or what the dictionary reads."""
        spec, anchored = facts["spec"].get("anchors"), {}
        if spec is not None and spec["source"].startswith("labels."):
            if anchors is None:
                raise UserError(f"--anchors: means of {spec['source']} were anchors; give their file to leave them out")
            anchored = {spec["source"].removeprefix("labels."): load_anchors(anchors).names or []}
        if embedding is None:
            return Yardstick(anchored, None, "")
        if embedding.place is None:
            site = store.site(embedding.site)
            if site in [store.site(read) for read in facts["reads"]]:
                raise UserError(f"--embedding: {embedding.site}: the dictionary reads it; name a site that it does not")
            return Yardstick(anchored, (store, site), site)
        other = open_store(embedding.place)
        other.check_finished()
        check_same_rows(store, other)
        site = other.site(embedding.site)
        return Yardstick(anchored, (other, site), f"{folder_of(other.path)}/{site}")


def measure_monosemanticity(
    dictionary: Dictionary,
    facts: Mapping[str, Any],
    store: Store,
    encoded: EncodedRows,
    statistics: LatentStatistics,
    against: Yardstick,
    output: pathlib.Path,
) -> None:
    """Measure what a dictionary's latents stand for, on all rows. `facts`: what its `cfg.json` says of its training.

    Writes into `output`:
    `monosemanticity.safetensors`: of each label set `<set>/best_label` `(F,)` int32, -1 for none, and of that label
    `<set>/precision`, `recall`, `f1`, `auc` and `purity`; `<set>/entropy`; where there are tokens `token_purity`; where
    there is an embedding `score`. All `(F,)`, NaN where they do not apply. `analyze.labelled` and `analyze.similarity`
    define them.
    `monosemanticity.json`: `sets`: of each label set its `names`, the number of `live` latents, `mean` and `median` of
    each figure over these, its `distributions` (counts between edges), `labels`: of each its `rows`, its `best_latent`
    (null for none) with `f1`, `precision`, `recall` and `auc`, how many latents are `sharing` it, `absorption`, whether
    it was `anchored`, and how its mean is recovered (`inner_product`, `encoder_cosine`, `decoder_cosine`);
    `class_means`: Table 2 of arXiv 2512.05534, means over the labels that were no anchors. Beside `sets` are
    `token_purity` and `score`, null or with `mean` and `median`, and the `distributions` of both.
    """
    sets = {
        name: Judged.of(statistics.firing_F, statistics.label_firing[name], statistics.label_rows[name])
        for name in store.labels
    }
    arrays: dict[str, np.ndarray] = {}
    found: dict[str, Any] = {"sets": {}, "token_purity": None, "score": None, "distributions": {}}
    pure_F, pairs = judge_latents(encoded, store, statistics, sets)
    if pure_F is not None:
        arrays["token_purity"] = pure_F
        found["token_purity"] = {"what": "token", **_centre(pure_F)}
        found["distributions"]["token_purity"] = _distribution(pure_F, 0, 1)
    if against.embedding is not None:
        arrays["score"] = score_F = scores(encoded, *against.embedding)
        found["score"] = {"embedding": against.called, **_centre(score_F)}
        found["distributions"]["score"] = _distribution(score_F, -1, 1)
    absorbed = _absorbed(encoded, store, sets)
    sums = label_sums(store, sites_of(store, facts), list(sets), store.rows) if sets else {}
    for name, judged in sets.items():
        figures = _figures(store, name, statistics, judged, pairs[name])
        arrays |= {f"{name}/{figure}": values_F for figure, values_F in figures.items()}
        arrays[f"{name}/best_label"] = judged.best_label_F.astype(np.int32)
        rows_L = statistics.label_rows[name]
        recovered = class_directions(dictionary, store, facts, sums[name][0], rows_L)
        anchored_L = np.isin(store.labels[name], against.anchored.get(name, []))
        found["sets"][name] = {
            "names": store.labels[name],
            "live": int((statistics.firing_F > 0).sum()),
            **_summaries(figures, len(rows_L)),
            "labels": _of_labels(
                store.labels[name], rows_L, judged, pairs[name], absorbed[name], anchored_L, recovered
            ),
            "class_means": over_classes(recovered, anchored_L),
        }
    whole = {key: of_F if of_F.dtype == np.int32 else of_F.astype(np.float32) for key, of_F in arrays.items()}
    save_file(whole, output / "monosemanticity.safetensors")
    write_json(output / "monosemanticity.json", found)


def scores(encoded: EncodedRows, store: Store, site: str) -> np.ndarray:
    """`Similarity.scores` of all latents; the embedding is a site of `store`."""
    of_latents = ranges(encoded.latents, store.widths[store.site(site)])
    of_block = dask.delayed(Similarity.of, pure=False)
    found = []
    with progress(len(of_latents) * encoded.rows, "MS score") as bar:
        for latents in of_latents:
            tasks = [of_block(encoded, number, latents, store.place, site) for number in range(len(encoded.ranges))]
            sizes = {task.key: stop - start for task, (start, stop) in zip(tasks, encoded.ranges, strict=True)}
            (whole,) = compute([merged(tasks, Similarity.merge)], bar=bar, amounts=sizes)
            found.append(whole.scores())
    return np.concatenate(found)


def _absorbed(encoded: EncodedRows, store: Store, sets: Mapping[str, Judged]) -> dict[str, np.ndarray]:
    """Of each label set the rows of `absorbed_rows`, `(L,)`."""
    counts = {name: np.zeros(len(store.labels[name]), np.int64) for name in sets}
    for number, (start, stop) in enumerate(encoded.ranges if sets else []):
        places = encoded.block(number)
        for name, judged in sets.items():
            counts[name] += absorbed_rows(places, np.asarray(store.array(f"rows/labels/{name}")[start:stop]), judged)
    return counts


def _figures(
    store: Store, name: str, statistics: LatentStatistics, judged: Judged, aucs: Pairs
) -> dict[str, np.ndarray]:
    """Of a label set, each `(F,)`."""
    rows_FE = statistics.example_rows_FE
    return {
        "precision": judged.precision_F,
        "recall": judged.recall_F,
        "f1": judged.f1_F,
        "auc": np.array([aucs.get(pair, np.nan) for pair in enumerate(judged.best_label_F.tolist())]),
        "entropy": entropy(statistics.label_sum[name], statistics.sum_F),
        "purity": purity(column_at(store, f"rows/labels/{name}", rows_FE), judged.best_label_F, (rows_FE >= 0).sum(1)),
    }


def _summaries(figures: Mapping[str, np.ndarray], labels: int) -> dict[str, Any]:
    """`mean`, `median` and `distributions` of each figure."""
    centres = {figure: _centre(values_F) for figure, values_F in figures.items()}
    highest = {"entropy": float(np.log2(labels + 1))}
    return {
        **{which: {figure: centre[which] for figure, centre in centres.items()} for which in ("mean", "median")},
        "distributions": {figure: _distribution(of_F, 0, highest.get(figure, 1)) for figure, of_F in figures.items()},
    }


def _of_labels(
    names: list[str],
    rows_L: np.ndarray,
    judged: Judged,
    aucs: Pairs,
    absorbed_L: np.ndarray,
    anchored_L: np.ndarray,
    recovered: Mapping[str, np.ndarray],
) -> list[dict[str, Any]]:
    sharing_L, f1_L = judged.sharing_L, judged.f1_L
    found = []
    for label, name in enumerate(names):
        best = int(judged.best_latent_L[label])
        of_best = dict.fromkeys(("best_latent", "f1", "precision", "recall", "auc", "absorption"))
        if best >= 0:
            hits = int(judged.hits_FL[best, label])
            of_best = {
                "best_latent": best,
                "f1": float(f1_L[label]),
                "precision": hits / int(judged.firing_F[best]),
                "recall": hits / int(rows_L[label]),
                "auc": _number(aucs[best, label]),
                "absorption": int(absorbed_L[label]) / int(rows_L[label]) if sharing_L[label] else None,
            }
        found.append(
            {
                **{"label": name, "rows": int(rows_L[label]), "sharing": int(sharing_L[label]), **of_best},
                "anchored": bool(anchored_L[label]),
                **{figure: _number(of_L[label]) for figure, of_L in recovered.items()},
            }
        )
    return found


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _centre(values_F: np.ndarray) -> dict[str, float | None]:
    there = values_F[~np.isnan(values_F)]
    return (
        {"mean": float(there.mean()), "median": float(np.median(there))}
        if len(there)
        else dict.fromkeys(("mean", "median"))
    )


def _distribution(values_F: np.ndarray, lowest: float, highest: float) -> dict[str, list[float]]:
    """How many values lie in each twentieth; rounding must put none outside."""
    counts, edges = np.histogram(values_F[~np.isnan(values_F)].clip(lowest, highest), BINS, (lowest, highest))
    return {"edges": edges.tolist(), "counts": counts.tolist()}
