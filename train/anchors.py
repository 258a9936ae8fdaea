"""Known directions that latents are held to: feature anchoring (arXiv 2512.05534, section 4).

Shapes: K anchors, P width read, R width written, G groups of rows, B rows. Directions are in the model's own units.
"""

import itertools
import json
import operator
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass

import dask
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from harvest.errors import UserError
from harvest.files import make_folder
from harvest.joined import Place, open_store
from harvest.store import Store
from harvest.tasks import compute, merged
from train.config import AnchorSpec, DictionarySpec, training_rows
from train.scaling import Scaling

BATCH_BYTES = 2**25
"""Rows are summed a few at a time; this is their size in float32."""
SAMPLE_BYTES = 2**28
"""Rows that clusters are looked for in, in float32: 87,000 rows of width 768."""


@dataclass(frozen=True)
class Anchors:
    """Latent i is held to row i: its encoder row to that of `read`, its decoder row to that of `written`."""

    read: Tensor
    """w̃_p of eq. 24: unit rows over the concatenation of the sites read, `(K, P)` float32."""
    written: Tensor
    """w̃_r of eq. 24: unit rows over the concatenation of the sites written, `(K, R)` float32."""
    features: Tensor | None = None
    """The ground-truth columns these are, `(K,)` int64; they are left out where recovery is measured."""
    names: list[str] | None = None
    """The labels these are the means of."""


def make_anchors(spec: DictionarySpec, store: Store, output: pathlib.Path) -> None:
    """Write the anchors that `spec.anchors` asks for: a function of the store, the sites, `spec.seed` and the holdout.

    `output` is a safetensors file with `read` `(K, P)` and `written` `(K, R)`, float32 unit rows over the sites in the
    order of `spec.reads` and `spec.written`; for the source `truth` also `features` `(K,)` int64. The metadata's
    `names` is a JSON list of the labels, or null.

    Raises:
        UserError: the store is unfinished or lacks what the source needs, a label set or name does not exist or has no
            direction, or there are fewer latents, features, labels or rows than anchors.
    """
    wanted = spec.anchors
    assert wanted is not None, "only for dictionaries with anchors"
    if wanted.count > spec.latents:
        raise UserError(f"anchors.count: {wanted.count}: more anchors than latents {spec.latents}; ask for fewer")
    if wanted.names is not None and not wanted.source.startswith("labels."):
        raise UserError(f"anchors.names: only for the source labels.<set>, and this is {wanted.source}; leave it out")
    store.check_finished()
    reads = [store.site(site) for site in spec.reads]
    writes = [store.site(site) for site in spec.written]
    rng = np.random.default_rng(spec.seed)
    if wanted.source == "truth":
        anchors = _truth(wanted, store, reads, writes, rng)
    elif wanted.source == "clusters":
        anchors = _clusters(wanted, store, reads, writes, training_rows(store.rows, spec.holdout), rng)
    else:
        anchors = _labels(wanted, store, reads, writes, training_rows(store.rows, spec.holdout), rng)
    tensors = {"read": normalize(anchors.read).float(), "written": normalize(anchors.written).float()}
    if anchors.features is not None:
        tensors["features"] = anchors.features
    make_folder(output.parent)
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        output,
        {"names": json.dumps(anchors.names, ensure_ascii=False)},
    )


def load_anchors(path: pathlib.Path) -> Anchors:
    """What `make_anchors` wrote; a file that is missing or something else is a `UserError`."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            names = json.loads(file.metadata()["names"])
        return Anchors(tensors["read"], tensors["written"], tensors.get("features"), names)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"anchors {path}: cannot be read ({error})") from None


def _truth(
    wanted: AnchorSpec, store: Store, reads: Sequence[str], writes: Sequence[str], rng: np.random.Generator
) -> Anchors:
    """A random subset of the ground-truth features, each site's from its own matrix (eq. 22)."""
    if not store.has("truth/features"):
        raise UserError(f"anchors.source: truth: {store.path} has no ground truth; only stores of the bench do")

    def columns(sites: Sequence[str]) -> np.ndarray:
        return np.concatenate([np.asarray(store.array(f"truth/features/{site}")[:]) for site in sites]).T

    read_NP, written_NR = columns(reads), columns(writes)
    if wanted.count > len(read_NP):
        raise UserError(f"anchors.count: {wanted.count}: more anchors than the {len(read_NP)} features; ask for fewer")
    drawn_K = np.sort(rng.choice(len(read_NP), wanted.count, replace=False))
    return Anchors(torch.from_numpy(read_NP[drawn_K]), torch.from_numpy(written_NR[drawn_K]), torch.from_numpy(drawn_K))


def _labels(
    wanted: AnchorSpec,
    store: Store,
    reads: Sequence[str],
    writes: Sequence[str],
    kept: int,
    rng: np.random.Generator,
) -> Anchors:
    """The mean of each labelled subpopulation (eq. 23) less that of all rows, as dictionaries work on centred rows."""
    label_set = wanted.source.removeprefix("labels.")
    if label_set not in store.labels:
        there = f"it has {', '.join(store.labels)}" if store.labels else "it has no labels at all"
        raise UserError(f"anchors.source: {wanted.source}: no such label set in {store.path}; {there}")
    names = store.labels[label_set]
    sites = reads if reads == writes else [*reads, *writes]
    sums_GD, rows_G = label_sums(store, sites, [label_set], kept)[label_set]
    rows_L = rows_G[:-1]
    # A label that no row or every row has stands for no direction.
    usable_L = (rows_L > 0) & (rows_L < kept)
    chosen_K = _named(wanted, names, usable_L) if wanted.names is not None else _drawn(wanted, names, usable_L, rng)
    directions_KD = torch.from_numpy(sums_GD[chosen_K] / rows_L[chosen_K, None] - sums_GD.sum(0) / kept)
    read = sum(store.widths[site] for site in reads)
    written = sum(store.widths[site] for site in writes)
    return Anchors(directions_KD[:, :read], directions_KD[:, -written:], names=[names[i] for i in chosen_K])


def _named(wanted: AnchorSpec, names: Sequence[str], usable_L: np.ndarray) -> list[int]:
    assert wanted.names is not None
    if wanted.count != len(wanted.names) or len(set(wanted.names)) != len(wanted.names):
        raise UserError(f"anchors.count: {wanted.count}: names must be that many different labels, not {wanted.names}")
    for name in wanted.names:
        if name not in names:
            raise UserError(f"anchors.names: {name}: no such label in {wanted.source}; there are {', '.join(names)}")
        if not usable_L[names.index(name)]:
            raise UserError(f"anchors.names: {name}: none or all of the rows to train on have it; name another label")
    return [names.index(name) for name in wanted.names]


def _drawn(wanted: AnchorSpec, names: Sequence[str], usable_L: np.ndarray, rng: np.random.Generator) -> list[int]:
    if wanted.count > (usable := int(usable_L.sum())):
        raise UserError(
            f"anchors.count: {wanted.count}: more anchors than labels; {usable} of the {len(names)} of {wanted.source} "
            "are on some of the rows to train on and not on all"
        )
    drawn: list[int] = np.sort(rng.choice(np.flatnonzero(usable_L), wanted.count, replace=False)).tolist()
    return drawn


def label_sums(
    store: Store, sites: Sequence[str], label_sets: Sequence[str], rows: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of the first `rows` rows, in one pass: label set -> the sum of each label's rows, `(G, D)` float64 over the
    concatenation of `sites`, and their number `(G,)`. The last group are the rows without a label."""
    groups = [len(store.labels[name]) + 1 for name in label_sets]
    blocks = [(start, min(start + store.layout.shard_rows, rows)) for start in range(0, rows, store.layout.shard_rows)]
    sum_later = dask.delayed(_group_sums, pure=False)
    labels = [f"rows/labels/{name}" for name in label_sets]
    tasks = [sum_later(block, store.place, sites, labels, groups) for block in blocks]
    (sums_GD,) = compute([merged(tasks, operator.add)], at_once=None)
    parts = np.split(sums_GD, np.cumsum(groups)[:-1])
    return {name: (part[:, :-1], part[:, -1]) for name, part in zip(label_sets, parts, strict=True)}


def _group_sums(
    block: tuple[int, int], place: Place, sites: Sequence[str], labels: Sequence[str], groups: Sequence[int]
) -> np.ndarray:
    """Sum of each group's rows and, in the last column, their number: `(G, D + 1)` float64, one label set's groups
    after another's. The last group of each has no label."""
    store = open_store(place)
    width = sum(store.widths[site] for site in sites)
    sums_GD = torch.zeros(sum(groups), width + 1, dtype=torch.float64)
    batch = _batch(store, width)
    for start, stop in itertools.pairwise([*range(*block, batch), block[1]]):
        x_BD = _read(store, sites, start, stop).double()
        x_BD = torch.cat([x_BD, torch.ones(len(x_BD), 1, dtype=torch.float64)], 1)
        for path, of_set_GD in zip(labels, torch.split(sums_GD, list(groups)), strict=True):
            group_B = torch.from_numpy(np.asarray(store.array(path)[start:stop])).long() % len(of_set_GD)  # -1 is last
            of_set_GD.index_add_(0, group_B, x_BD)
    return sums_GD.numpy()


def _clusters(
    wanted: AnchorSpec,
    store: Store,
    reads: Sequence[str],
    writes: Sequence[str],
    kept: int,
    rng: np.random.Generator,
) -> Anchors:
    """Spherical k-means (Dhillon and Modha 2001): directions that need neither truth nor labels.

    On a sample of whole chunks; several sites read weigh the same, as in training. MiniBatchKMeans, for a set number
    of passes, finds the centres; a last spherical step assigns rows by cosine. What is written is then the mean of the
    rows' written sites, less that of all rows.
    """
    from sklearn.cluster import MiniBatchKMeans  # a second to import, which nobody else should wait for

    read_scaling, write_scaling = Scaling.of(store, list(reads)), Scaling.of(store, list(writes))
    ranges = _sample(store, len(read_scaling.mean) + len(write_scaling.mean), kept, rng)
    rows = sum(stop - start for start, stop in ranges)
    if wanted.count > rows:
        raise UserError(f"anchors.count: {wanted.count}: more anchors than the {rows} rows looked at; ask for fewer")
    read_BP = torch.cat([normalize(read_scaling(_read(store, reads, *each))) for each in ranges])
    found = MiniBatchKMeans(
        wanted.count,
        batch_size=4096,
        max_iter=20,
        max_no_improvement=None,  # a sum over threads, whose last bits vary, would decide when to stop
        n_init=3,
        random_state=int(rng.integers(2**31)),
    ).fit(read_BP.numpy())
    centres_PK = normalize(torch.from_numpy(found.cluster_centers_).float()).T
    read_KP, written_KR = torch.zeros(centres_PK.T.shape), torch.zeros(wanted.count, len(write_scaling.mean))
    rows_K = torch.zeros(wanted.count, dtype=torch.int64)
    at = 0
    for start, stop in ranges:
        x_bP = read_BP[at : (at := at + stop - start)]
        cluster_b = (x_bP @ centres_PK).argmax(1)
        rows_K += torch.bincount(cluster_b, minlength=wanted.count)
        read_KP.index_add_(0, cluster_b, x_bP)
        written_KR.index_add_(0, cluster_b, _read(store, writes, start, stop) - write_scaling.mean)
    if (empty := int((rows_K == 0).sum())) > 0:
        raise UserError(f"anchors.count: {wanted.count}: {empty} clusters stayed empty; ask for fewer")
    return Anchors(read_KP / read_scaling.scale, written_KR)


def _sample(store: Store, width: int, kept: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Ranges of rows: random chunks among the first `kept` rows, in order, with about `SAMPLE_BYTES`."""
    chunk = store.layout.chunk_rows
    chunks = -(-kept // chunk)
    drawn = np.sort(rng.permutation(chunks)[: max(1, SAMPLE_BYTES // (4 * width * chunk))])
    return [(int(i) * chunk, min((int(i) + 1) * chunk, kept)) for i in drawn]


def _batch(store: Store, width: int) -> int:
    """A whole number of chunks, with about `BATCH_BYTES`."""
    return max(1, BATCH_BYTES // (4 * width * store.layout.chunk_rows)) * store.layout.chunk_rows


def _read(store: Store, sites: Sequence[str], start: int, stop: int) -> Tensor:
    return torch.cat([store.read(site, start, stop).float() for site in sites], 1)
