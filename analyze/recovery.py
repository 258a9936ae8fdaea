"""What a dictionary recovers of the bench's ground truth (arXiv 2512.05534, section 5.1).

Shapes: N features, F latents, P width read, R width written, B rows, C children, n active places. Features that were
anchors take part in matching and in the rows like all others, but no figure is a mean over them.
"""

import csv
import io
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import dask
import numpy as np
import torch
from safetensors.numpy import save_file
from scipy.optimize import linear_sum_assignment

from analyze.encoded import batch_rows
from analyze.firing import Firing, active_latents, firing_of_rows, parents_of
from analyze.theory.problem import dead, polysemantic
from harvest.errors import UserError
from harvest.files import make_folder, read_json, write_json, write_text
from harvest.location import Location
from harvest.progress import progress
from harvest.store import Store
from harvest.tasks import compute, merged
from train.anchors import load_anchors
from train.dictionary import Dictionary
from train.files import load

THRESHOLD = 0.95
"""τ: a feature with a score above it counts as recovered."""
THRESHOLDS = [i / 100 for i in range(101)]
"""Figure 6's axis."""
CURVES = ("raw", "encoder_cosine", "decoder_cosine")
SAME = ("encoder_cosine", "decoder_cosine", "precision", "recall", "firing_f1", "absorption", "lost_child")
MEANS = {"m_ip": "raw", "mcc": "matched_cosine", **{name: name for name in SAME}}
"""Figure -> the array over features that it is the mean of."""
COLUMNS = (
    *("dictionary", "kind", "method", "anchored", "seed", "m_gt", "m_ip", "encoder_cosine", "decoder_cosine", "mcc"),
    *("firing_f1", "explained_variance", "l0", "target_l0", "dead", "polysemantic", "absorption"),
)
"""Of `recovery.csv`."""


def measure_recovery(
    dictionary_folder: pathlib.Path, store_path: Location, anchors_path: pathlib.Path | None, output: pathlib.Path
) -> None:
    """Compare a dictionary with the truth in the bench's store that it was trained on.

    Writes into `output`:
    `recovery.safetensors`: arrays with an entry a feature, anchors too: what `directions`, `Firing.scores` and
    `lost_children` give, and `anchored`; NaN where a measurement does not apply.
    `recovery.json`: over the features that were not anchors, the mean of each array (`MEANS`; null where none applies),
    `m_gt` and `decoder_recovery`, the shares of features whose raw score and decoder cosine exceed τ = 0.95, and
    `curves`, the shares at each of `thresholds`; of the latents the shares `dead` (active in no row of the store),
    `dead_pattern` and `polysemantic` (`pattern_shares`); `features`, `anchored`, `latents`, `store`.

    Raises:
        UserError: the store is unfinished, has no truth or is not the dictionary's; features were anchors and
            `anchors_path` is not given; or every feature was an anchor.
    """
    store = Store(store_path)
    dictionary, cfg = load(dictionary_folder)
    facts = cfg["metadata"]
    _check(store, dictionary_folder, facts, anchors_path)
    read_PN, written_RN = _features(store, facts["reads"]), _features(store, facts["writes"])
    anchored_N = _anchored(read_PN.shape[1], anchors_path)
    parents_N = parents_of(store)
    arrays = directions(dictionary, read_PN, written_RN)
    blocks = [(i, min(i + store.layout.shard_rows, store.rows)) for i in range(0, store.rows, store.layout.shard_rows)]
    fire_later = dask.delayed(firing_of_rows, pure=False)
    tasks = [fire_later(block, dictionary_folder.absolute(), store.place, arrays["matched_latent"]) for block in blocks]
    sizes = {task.key: stop - start for task, (start, stop) in zip(tasks, blocks, strict=True)}
    firing: Firing
    with progress(store.rows, "recovery") as bar:
        (firing,) = compute([merged(tasks, Firing.merge)], bar=bar, amounts=sizes)
    typical_PN = read_PN * firing.magnitude_N
    lost_N = lost_children(dictionary, typical_PN, arrays["matched_latent"], parents_N)
    arrays |= {**firing.scores(arrays["matched_latent"], parents_N), "lost_child": lost_N, "anchored": anchored_N}
    figures = {
        **over_features(arrays, ~anchored_N),
        **pattern_shares(activation_pattern(dictionary, typical_PN), anchored_N),
        "dead": float((firing.fired_F == 0).mean()),
        **{"features": len(anchored_N), "anchored": int(anchored_N.sum()), "latents": dictionary.latents},
        "store": store.fingerprint,
    }
    make_folder(output)
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, output / "recovery.safetensors")
    write_json(output / "recovery.json", figures)


def _check(store: Store, folder: pathlib.Path, facts: Mapping[str, Any], anchors_path: pathlib.Path | None) -> None:
    if not store.has("truth/features"):
        raise UserError(f"store {store.path}: has no ground truth to recover; only stores of the bench do")
    if facts["store"] != store.fingerprint:
        raise UserError(f"store {store.path}: the dictionary in {folder} was trained on another one")
    store.check_finished()
    anchors = facts["spec"].get("anchors")
    if anchors_path is None and anchors is not None and anchors["source"] == "truth":
        raise UserError(f"dictionary {folder}: features were its anchors; give the anchors' file to leave them out")


def _features(store: Store, sites: Iterable[str]) -> np.ndarray:
    """W_p or W_r: the feature matrices of some sites, stacked, `(P, N)`. Each site's columns have unit length."""
    return np.concatenate([np.asarray(store.array(f"truth/features/{site}")[:]) for site in sites])


def _anchored(features: int, anchors_path: pathlib.Path | None) -> np.ndarray:
    anchored_N = np.zeros(features, dtype=bool)
    if anchors_path is not None and (found := load_anchors(anchors_path).features) is not None:
        anchored_N[found.numpy()] = True
    if anchored_N.all():
        raise UserError(f"anchors {anchors_path}: every feature is one; none is left to measure recovery on")
    return anchored_N


def directions(dictionary: Dictionary, read_PN: np.ndarray, written_RN: np.ndarray) -> dict[str, np.ndarray]:
    """How well rows of W_enc and W_dec point along the features, each `(N,)`.

    `raw`: the paper's max_j |<W_E_j, w_p>|, with a scale that makes 1 mean that latent j carries the feature whole:
    |<W_E_j, w_p>| ‖W_D_j‖ / ‖w_r‖. A dictionary with unit decoder rows that writes one site has both norms 1, so there
    this is the paper's figure. With several sites, stacked features are longer than 1, and decoder rows of unit length
    in training have another length in the sites' own units; for sites of equal variance a crosscoder's figure is
    <W_E_j, w_p / ‖w_p‖>, the paper's for unit columns. Like the paper's it is blind to sign and rewards a larger W_E.
    `encoder_cosine` and `decoder_cosine`: max_j of the cosine of w_p with W_E_j and of w_r with W_D_j. Latents and
    coefficients are never negative, so an opposite direction is no recovery.
    `matched_latent` and `matched_cosine`: the one-to-one match with the largest sum of decoder cosines (Hungarian
    method), whose mean is the MCC; -1 and 0 for features that are left over where latents are fewer.
    """
    W_enc_FP, W_dec_FR = (W.detach().double().numpy() for W in (dictionary.W_enc, dictionary.W_dec))
    gain_F = np.linalg.norm(W_dec_FR, axis=1)
    raw_N = np.abs(gain_F[:, None] * (W_enc_FP @ read_PN)).max(0) / np.linalg.norm(written_RN, axis=0)
    encoder_N = (_unit(W_enc_FP) @ _unit(read_PN.T).T).max(0)
    cosine_FN = _unit(W_dec_FR) @ _unit(written_RN.T).T
    latents, features = linear_sum_assignment(cosine_FN, maximize=True)
    matched_N, matched_cosine_N = np.full(len(raw_N), -1), np.zeros(len(raw_N))
    matched_N[features], matched_cosine_N[features] = latents, cosine_FN[latents, features]
    best = {"raw": raw_N, "encoder_cosine": encoder_N, "decoder_cosine": cosine_FN.max(0)}
    return {**best, "matched_latent": matched_N, "matched_cosine": matched_cosine_N}


def _unit(rows: np.ndarray) -> np.ndarray:
    unit: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit


@torch.inference_mode()
def activation_pattern(dictionary: Dictionary, x_PN: np.ndarray) -> np.ndarray:
    """Definition 3.1 with the dictionary's own σ and biases: which latents each input switches on, bool `(F, N)`."""
    pattern_FN = np.zeros((dictionary.latents, x_PN.shape[1]), dtype=bool)
    step = batch_rows(dictionary.latents)
    for start in range(0, x_PN.shape[1], step):
        part_NP = torch.from_numpy(np.ascontiguousarray(x_PN[:, start : start + step].T)).float()
        inputs_n, latents_n = active_latents(dictionary, part_NP)
        pattern_FN[latents_n, inputs_n + start] = True
    return pattern_FN


def pattern_shares(pattern_FN: np.ndarray, anchored_N: np.ndarray) -> dict[str, float | None]:
    """Definition 3.1's shares: `dead_pattern`, of latents that no feature switches on when it appears alone, and
    `polysemantic`, of latents that two features or more do, among those that a feature that was no anchor does.
    """
    live_F = pattern_FN[:, ~anchored_N].any(1)
    return {
        "dead_pattern": float(dead(pattern_FN).mean()),
        "polysemantic": _mean(polysemantic(pattern_FN)[live_F]),
    }


def lost_children(
    dictionary: Dictionary, typical_PN: np.ndarray, matched_N: np.ndarray, parents_N: np.ndarray
) -> np.ndarray:
    """Whether a parent's latent lost a child to feature absorption (theorem 3.8), `(N,)`: 0 or 1, NaN for no parent.

    A child never comes without its parent (definition 3.2), so the least that shows it is the two together. The child
    is lost where that leaves the parent's latent off and switches the child's own on.
    """
    children_C = np.flatnonzero(parents_N >= 0)
    parents_C = parents_N[children_C]
    pattern_FC = activation_pattern(dictionary, typical_PN[:, children_C] + typical_PN[:, parents_C])
    own_CC, parent_CC = (
        pattern_FC[matched_N[which], np.arange(len(which))] & (matched_N[which] >= 0)
        for which in (children_C, parents_C)
    )
    lost_N = np.full(len(parents_N), np.nan)
    lost_N[parents_C] = 0
    lost_N[parents_C[own_CC & ~parent_CC]] = 1
    return lost_N


def over_features(arrays: Mapping[str, np.ndarray], kept_N: np.ndarray) -> dict[str, Any]:
    """The figures of `recovery.json` that are about features, over those kept."""
    above = {
        name: [float((arrays[name][kept_N] > threshold).mean()) for threshold in (*THRESHOLDS, THRESHOLD)]
        for name in CURVES
    }
    return {
        **{figure: _mean(arrays[name][kept_N]) for figure, name in MEANS.items()},
        "m_gt": above["raw"][-1],
        "decoder_recovery": above["decoder_cosine"][-1],
        "curves": {name: shares[:-1] for name, shares in above.items()},
        "thresholds": THRESHOLDS,
    }


def _mean(values: np.ndarray) -> float | None:
    """Of the entries that are not NaN; None where there is none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else None


def recovery_row(dictionary: str, trained: pathlib.Path, measured: pathlib.Path) -> dict[str, Any]:
    """A dictionary's line of `recovery.csv`, from `training.json` in `trained`, `summary.json` and `recovery.json`.

    Explained variance (a share of 1) and l0 are those of the held-out rows where there are any. Of what was loaded
    nobody knows the seed, and no l0 was asked for.
    """
    training = read_json(trained / "training.json", "training")
    summary = read_json(measured / "summary.json", "summary")
    recovery = read_json(measured / "recovery.json", "recovery")
    spec, rows = training["spec"], summary["held_out"] or summary["whole"]
    ((method, sparsity),) = spec["sparsity"].items()
    row = {
        **recovery,
        "dictionary": dictionary,
        "kind": training["kind"],
        "method": method if spec["matryoshka"] is None else f"matryoshka-{method}",
        "anchored": "no" if spec["anchors"] is None else "yes",
        "seed": spec["seed"],
        "explained_variance": rows["explained_variance"],
        "l0": rows["l0"],
        "target_l0": None if "loaded" in training else sparsity["l0"],
    }
    return {column: row[column] for column in COLUMNS}


def write_recovery_csv(rows: Iterable[Mapping[str, Any]], path: pathlib.Path) -> None:
    """`rows` as `recovery_row` gives them, one line each; what does not apply is empty, numbers have six digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: f"{cell:.6g}" if isinstance(cell, float) else cell for name, cell in row.items()})
    make_folder(path.parent)
    write_text(path, text.getvalue())
