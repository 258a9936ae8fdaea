"""What needs all activations of a latent together: its AUC as a sign of a label, its most common token."""

from collections.abc import Mapping

import dask
import numpy as np

from analyze.by_latent import ByLatent, OfLatent
from analyze.encoded import EncodedRows
from analyze.labelled import Judged, auc
from analyze.latents import LatentStatistics
from harvest.progress import progress
from harvest.store import Store
from harvest.tasks import compute

OF_ROWS = "rows/token"
Pairs = dict[tuple[int, int], float]
"""A figure of a latent and a label."""


def judge_latents(
    encoded: EncodedRows, store: Store, statistics: LatentStatistics, sets: Mapping[str, Judged]
) -> tuple[np.ndarray | None, dict[str, Pairs]]:
    """Token purity `(F,)`, NaN for dead latents, or None where there are no tokens; and of each label set the AUC of
    each latent with its best label and of each label with its best latent."""
    if not (sets or store.has(OF_ROWS)):
        return None, {}
    columns = [f"rows/labels/{name}" for name in sets] + ([OF_ROWS] if store.has(OF_ROWS) else [])
    by_latent = ByLatent(encoded, columns)
    by_latent.check_disk(int(statistics.firing_F.sum()))
    write_later, judge_later = (dask.delayed(do, pure=False) for do in (ByLatent.write, _judge_group))
    writing = [write_later(by_latent, number, store.place) for number in by_latent.missing]
    with progress(len(writing), "latent by latent", "block") as bar:
        compute(writing, bar=bar, amounts=dict.fromkeys((task.key for task in writing), 1))
    wanted = {name: _wanted(judged) for name, judged in sets.items()}
    groups = by_latent.groups(statistics.firing_F)
    judging = [
        judge_later(
            by_latent,
            group,
            {name: {latent: of[latent] for latent in range(*group) if latent in of} for name, of in wanted.items()},
            statistics.label_rows,
            store.rows,
        )
        for group in groups
    ]
    sizes = {task.key: last - first for task, (first, last) in zip(judging, groups, strict=True)}
    with progress(encoded.latents, "latents", "latent") as bar:
        parts = compute(judging, bar=bar, amounts=sizes)
    aucs = {name: {pair: value for _, found in parts for pair, value in found[name].items()} for name in sets}
    return np.concatenate([pure for pure, _ in parts]) if store.has(OF_ROWS) else None, aucs


def _wanted(judged: Judged) -> dict[int, set[int]]:
    """Latent -> the labels that it is looked at with."""
    wanted: dict[int, set[int]] = {}
    best_of_latents = enumerate(judged.best_label_F.tolist())
    best_of_labels = ((latent, label) for label, latent in enumerate(judged.best_latent_L.tolist()))
    for latent, label in (*best_of_latents, *best_of_labels):
        if latent >= 0 and label >= 0:
            wanted.setdefault(latent, set()).add(label)
    return wanted


def _judge_group(
    by_latent: ByLatent,
    group: tuple[int, int],
    wanted: Mapping[str, Mapping[int, set[int]]],
    label_rows: Mapping[str, np.ndarray],
    all_rows: int,
) -> tuple[np.ndarray, dict[str, Pairs]]:
    """What `_latent_by_latent` gives, of a range of latents."""
    pure = []
    aucs: dict[str, Pairs] = {name: {} for name in wanted}
    for of in by_latent.latents(*group):
        pure.append(_token_purity(of))
        for name, labels in wanted.items():
            for label in labels.get(of.latent, ()):
                count = int(label_rows[name][label])
                has_it_n = of.columns[f"rows/labels/{name}"] == label
                aucs[name][of.latent, label] = auc(of.values_n, has_it_n, count, all_rows - count)
    return np.array(pure), aucs


def _token_purity(of: OfLatent) -> float:
    """The share of a latent's rows that are its most common token."""
    if OF_ROWS not in of.columns or not len(of.values_n):
        return float("nan")
    return float(np.unique(of.columns[OF_ROWS], return_counts=True)[1].max() / len(of.values_n))
