"""What every latent does over a store, and how well the sites are reconstructed.

The store is encoded once (`analyze.encoded`). Blocks of codes are measured by themselves and merged pairwise, so that
memory holds latents × examples, whatever the rows.
"""

import itertools
import pathlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import dask
import numpy as np
import torch
from safetensors.numpy import save_file

from analyze.cofiring import measure_cofiring
from analyze.encoded import EncodedRows, encode_store
from analyze.examples import write_examples
from analyze.latents import LatentStatistics, histogram_edges, quantile_groups
from analyze.monosemanticity import Embedding, Yardstick, measure_monosemanticity
from analyze.variance import Reconstruction
from harvest.errors import UserError
from harvest.files import make_folder, write_json
from harvest.joined import Place, open_store
from harvest.store import Store
from harvest.tasks import compute, merged
from train.config import training_rows
from train.dictionary import Dictionary
from train.files import load

QUANTILES, OF_EACH = 10, 5
"""Groups of examples by activation, and how many there are in each."""


@dataclass(frozen=True)
class Activity:
    """Everything measured of some rows."""

    latents: LatentStatistics
    reconstruction: Reconstruction

    def merge(self, later: "Activity") -> "Activity":
        """Both together; the rows of `later` come after these."""
        return Activity(self.latents.merge(later.latents), self.reconstruction.merge(later.reconstruction))


def measure(
    dictionary_folder: pathlib.Path,
    place: Place,
    output: pathlib.Path,
    corpus: pathlib.Path | None = None,
    anchors: pathlib.Path | None = None,
    embedding: Embedding | None = None,
) -> None:
    """Measure a dictionary on the store it was trained on, as a whole and on the rows that training never saw.

    Writes into `output`:
    `summary.json`: `whole` and `held_out` (null where training saw every row), each with `rows`, `explained_variance`
    (and `explained_variance_by_site`), `l0` and `dead_share`; `density`: the number of live latents whose firing rate
    lies between two `edges`; `latents`; `store`; `labels`: each set's names; `packs`, and of images `images`.
    `latents.safetensors`: `firing` and `firing_held_out` `(F,)`, rows in which a latent is active; `mean_activation` in
    these, `max_activation`; `histogram` `(F, H)` of activations between `histogram_edges` `(H + 1,)`; `example_rows`
    and `example_activations` `(F, 20)`, -1 and 0 where a latent fired less often; `sample_rows` and
    `sample_activations` `(F, 10, 5)`, rows by chance from each tenth of its activations, the lowest first;
    `cofiring_latents`, `cofiring_jaccard` and `cofiring_correlation` `(F, 8)`; where several sites are written,
    `decoder_norm_share` `(F, S)`, whose distribution over live latents the summary has too.
    `labels.safetensors`: of each set `<set>/rows` `(L,)`, rows of each label, `<set>/firing` `(F, L)`, those in which a
    latent is active, and `<set>/sum`, its activations there.
    `examples/` and `images/`: what `analyze.examples.write_examples` writes.
    `monosemanticity.json` and `monosemanticity.safetensors`: what `measure_monosemanticity` writes, with `anchors` left
    out, and rows compared by `embedding`.
    The codes lie in `output` for a time (8 bytes an active latent); a measurement that was killed goes on with them.
    Raises `UserError` for a store that is unfinished or not the dictionary's, and as `Yardstick.of` does.
    """
    store = open_store(place)
    dictionary, cfg = load(dictionary_folder)
    facts = cfg["metadata"]
    if facts["store"] != store.fingerprint:
        raise UserError(f"store {store.path}: the dictionary in {dictionary_folder} was trained on another one")
    store.check_finished()
    against = Yardstick.of(store, facts, anchors, embedding)
    make_folder(output)
    kept = training_rows(store.rows, facts["spec"]["holdout"])
    encoded = encode_store(dictionary_folder, place, sorted({0, kept, store.rows}), output / "encoded")
    unit = scale(store, facts["writes"])
    measure_later = dask.delayed(measure_block, pure=False)
    parts = [
        compute([merged([measure_later(encoded, store.place, number, unit) for number in blocks], Activity.merge)])[0]
        for _, blocks in itertools.groupby(range(len(encoded.ranges)), lambda number: encoded.ranges[number][0] >= kept)
    ]
    held_out = parts[1] if len(parts) > 1 else None
    whole = reduce(Activity.merge, parts)
    measure_monosemanticity(dictionary, facts, store, encoded, whole.latents, against, output)
    shares_FS = decoder_norm_shares(dictionary, store, facts["writes"])
    _write(encoded, whole, held_out, store, facts, shares_FS, output, corpus)
    shutil.rmtree(encoded.folder)


def measure_block(encoded: EncodedRows, place: Place, number: int, unit: float) -> Activity:
    """The `Activity` of one block; activations are counted in bins of `unit`."""
    store, (start, stop) = open_store(place), encoded.ranges[number]
    labels = {
        name: (np.asarray(store.array(f"rows/labels/{name}")[start:stop]), len(names))
        for name, names in store.labels.items()
    }
    statistics = LatentStatistics.of(encoded.block(number), encoded.latents, histogram_edges(unit), labels)
    return Activity(statistics, encoded.reconstruction(number))


def scale(store: Store, sites: list[str]) -> float:
    """The root mean squared distance of written activations from their mean: what activations are of the order of."""
    return sum(float(store.statistics(site).variance.sum()) for site in sites) ** 0.5 or 1.0


def _write(
    encoded: EncodedRows,
    whole: Activity,
    held_out: Activity | None,
    store: Store,
    facts: dict[str, Any],
    shares_FS: np.ndarray | None,
    output: pathlib.Path,
    corpus: pathlib.Path | None,
) -> None:
    latents = whole.latents
    firing_F = latents.firing_F
    groups = quantile_groups(latents.sample_rows_FK, latents.sample_values_FK, QUANTILES, OF_EACH)
    cofiring = measure_cofiring(encoded, firing_F, latents.sample_rows_FK)
    tensors = {
        "firing": firing_F,
        "firing_held_out": held_out.latents.firing_F if held_out else np.zeros_like(firing_F),
        "mean_activation": latents.sum_F / np.maximum(firing_F, 1),
        "max_activation": latents.example_values_FE[:, 0],
        "histogram": latents.histogram_FH,
        "histogram_edges": histogram_edges(scale(store, facts["writes"])),
        "example_rows": latents.example_rows_FE,
        "example_activations": latents.example_values_FE,
        "sample_rows": groups[0],
        "sample_activations": groups[1],
        "cofiring_latents": cofiring.latents_FX,
        "cofiring_jaccard": cofiring.jaccard_FX,
        "cofiring_correlation": cofiring.correlation_FX,
    }
    if shares_FS is not None:
        tensors["decoder_norm_share"] = shares_FS
    _save(tensors, output / "latents.safetensors")
    by_label = {}
    for name in store.labels:
        by_label[f"{name}/rows"] = latents.label_rows[name]
        by_label[f"{name}/firing"] = latents.label_firing[name]
        by_label[f"{name}/sum"] = latents.label_sum[name].astype(np.float32)
    _save(by_label, output / "labels.safetensors")
    tops = (latents.example_rows_FE, latents.example_values_FE)
    shown = write_examples(store, encoded, tops, groups, output, corpus)
    summary = {
        "store": store.fingerprint,
        "latents": len(firing_F),
        "whole": figures(whole, store, facts["writes"]),
        "held_out": figures(held_out, store, facts["writes"]) if held_out else None,
        "density": density(firing_F, store.rows),
        "decoder_norm_share": None if shares_FS is None else _shares_of_live(shares_FS[firing_F > 0], facts["writes"]),
        "labels": store.labels,
        **shown,
    }
    write_json(output / "summary.json", summary)


def _save(tensors: dict[str, np.ndarray], file: pathlib.Path) -> None:
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, file)


def figures(activity: Activity, store: Store, writes: list[str]) -> dict[str, Any]:
    """The scalars of some rows; explained variance is a share of 1, in the activations' own units."""
    rows, firing_F = activity.reconstruction.rows, activity.latents.firing_F
    return {
        "rows": rows,
        "explained_variance": activity.reconstruction.explained_variance(),
        "explained_variance_by_site": {
            site: activity.reconstruction.explained_variance(dimensions) for site, dimensions in slices(store, writes)
        },
        "l0": float(firing_F.sum() / rows),
        "dead_share": float((firing_F == 0).mean()),
    }


def decoder_norm_shares(dictionary: Dictionary, store: Store, writes: list[str]) -> np.ndarray | None:
    """`‖W_dec,f,s‖ / Σ_s ‖W_dec,f,s‖` of each latent f at each site s, `(F, S)`; None where there is one site.

    Norms are in units of the site's `scale`: else a model whose activations are larger would have every latent's share.
    Near 0 or 1 a latent is of one site, or model, alone (Lindsey et al. 2024).
    """
    if len(writes) == 1:
        return None
    parts = [
        dictionary.W_dec[:, dimensions].norm(dim=1) / scale(store, [site]) for site, dimensions in slices(store, writes)
    ]
    norms_FS = torch.stack(parts, 1).double().detach()
    shares_FS: np.ndarray = (norms_FS / norms_FS.sum(1, keepdim=True).clamp_min(1e-30)).float().numpy()
    return shares_FS


def _shares_of_live(shares_FS: np.ndarray, writes: list[str]) -> dict[str, Any]:
    """At each site, how many live latents have which share, in twentieths."""
    edges = np.linspace(0, 1, 21)
    counts = [np.histogram(shares_F, edges)[0].tolist() for shares_F in shares_FS.T]
    return {"edges": edges.tolist(), "sites": writes, "counts": counts}


def density(firing_F: np.ndarray, rows: int) -> dict[str, list[float]]:
    """Live latents by firing rate (share of rows), in quarter decades from one row in the whole store to every row."""
    decades = max(1, int(np.ceil(np.log10(rows))))
    edges = 10.0 ** (np.arange(-4 * decades, 1) / 4)
    # Rounding must not put a latent that is active in one row, or in all, outside.
    rates = (firing_F[firing_F > 0] / rows).clip(edges[0], edges[-1])
    counts, _ = np.histogram(rates, edges)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def slices(store: Store, sites: list[str]) -> Iterator[tuple[str, slice]]:
    """Where each site lies in their concatenation."""
    at = 0
    for site in sites:
        yield site, slice(at, at := at + store.widths[store.site(site)])
