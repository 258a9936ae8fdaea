"""How the directions of labels' means are recovered: Table 2 of arXiv 2512.05534, for any labels.

Shapes: L labels, D width of all sites together.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from analyze.recovery import THRESHOLD, directions
from harvest.store import Store
from train.dictionary import Dictionary

ARRAYS = {"inner_product": "raw", "encoder_cosine": "encoder_cosine", "decoder_cosine": "decoder_cosine"}
"""Figure -> what `analyze.recovery.directions` calls it."""


def sites_of(store: Store, facts: Mapping[str, Any]) -> list[str]:
    """What a dictionary reads and what it writes, each site once."""
    return list(dict.fromkeys(store.site(site) for site in [*facts["reads"], *facts["writes"]]))


def class_directions(
    dictionary: Dictionary, store: Store, facts: Mapping[str, Any], sums_GD: np.ndarray, rows_L: np.ndarray
) -> dict[str, np.ndarray]:
    """How well the mean of each label's rows, less that of all rows, is recovered: `ARRAYS`, each `(L,)`, with these
    directions in place of features; NaN for a label that no row or every row has.

    `sums_GD`: each label's sum over the sites of `sites_of`, and in the last line that of rows without a label.
    """
    sites, usable = sites_of(store, facts), np.flatnonzero((rows_L > 0) & (rows_L < store.rows))
    found = {figure: np.full(len(rows_L), np.nan) for figure in ARRAYS}
    if not len(usable):
        return found
    means_lD = sums_GD[usable] / rows_L[usable, None] - sums_GD.sum(0) / store.rows
    parts = np.split(means_lD, np.cumsum([store.widths[site] for site in sites])[:-1], axis=1)
    # Of unit length at each site, as the features of the bench are.
    unit = {
        site: (part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-30)).T
        for site, part in zip(sites, parts, strict=True)
    }
    read, written = (np.concatenate([unit[store.site(site)] for site in facts[key]]) for key in ("reads", "writes"))
    arrays = directions(dictionary, read, written)
    for figure, array in ARRAYS.items():
        found[figure][usable] = arrays[array]
    return found


def over_classes(recovered: Mapping[str, np.ndarray], anchored_L: np.ndarray) -> dict[str, Any]:
    """Means over the labels that have a direction and were no anchors; None where there is none."""
    has_one_L = ~np.isnan(recovered["inner_product"])
    kept = {figure: of_L[has_one_L & ~anchored_L] for figure, of_L in recovered.items()}
    figures = {
        "m_gt": kept["inner_product"] > THRESHOLD,
        "m_ip": kept["inner_product"],
        "encoder_cosine": kept["encoder_cosine"],
        "decoder_cosine": kept["decoder_cosine"],
        "decoder_recovery": kept["decoder_cosine"] > THRESHOLD,
    }
    return {
        **{figure: float(of_l.mean()) if len(of_l) else None for figure, of_l in figures.items()},
        "classes": len(kept["inner_product"]),
        "anchored": int((has_one_L & anchored_L).sum()),
    }
