"""One pass over a store: what every latent does, and how well the sites are reconstructed.

Blocks of rows are measured by themselves (`measure_rows`, a pure function of paths and a range) and merged pairwise,
so the work spreads over any Dask scheduler and memory holds latents × examples, whatever the rows.
"""

import itertools
import json
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import dask
import numpy as np
import torch
from dask.callbacks import Callback
from safetensors.numpy import save_file
from torch import Tensor

from analyze.examples import AFTER, BEFORE, examples
from analyze.latents import LatentStatistics, Places, histogram_edges
from analyze.variance import Reconstruction
from harvest.errors import UserError
from harvest.files import make_folder, write_json, write_text
from harvest.joined import Place, open_store
from harvest.progress import progress
from harvest.store import Store
from train.config import training_rows
from train.dictionary import Codes, Dictionary
from train.files import load
from train.kernels import DensePattern

BATCH_PLACES = 2**24
"""Pre-activations in one product: 64 MiB of them."""
BLOCK_PLACES = 2**22
"""Active places in one block, which are held until the block is done: about 150 MiB with what sorting them takes."""


@dataclass(frozen=True)
class Activity:
    """Everything measured of some rows."""

    latents: LatentStatistics
    reconstruction: Reconstruction

    def merge(self, later: "Activity") -> "Activity":
        """Both together; the rows of `later` come after these."""
        return Activity(self.latents.merge(later.latents), self.reconstruction.merge(later.reconstruction))


def measure(dictionary_folder: pathlib.Path, place: Place, output: pathlib.Path) -> None:
    """Measure a dictionary on the store it was trained on, as a whole and on the rows that training never saw.

    Writes into `output`:
    `summary.json`: `whole` and `held_out` (null where training saw every row), each with `rows`, `explained_variance`
    (and `explained_variance_by_site`), `l0` and `dead_share`; `density`: the number of live latents whose firing rate
    lies between two `edges`; `latents`; `store`.
    `latents.safetensors`: `firing` and `firing_held_out` `(F,)`, rows in which a latent is active; `mean_activation` in
    these, `max_activation`; `histogram` `(F, H)` of activations between `histogram_edges` `(H + 1,)`; `example_rows`
    and `example_activations` `(F, 20)`, -1 and 0 where a latent fired less often; where several sites are written,
    `decoder_norm_share` `(F, S)`, whose distribution over live latents the summary has too.
    `examples.json`: what `analyze.examples.examples` gives.
    Raises `UserError` for a store that is unfinished or not the dictionary's.
    """
    store = open_store(place)
    dictionary, cfg = load(dictionary_folder)
    facts = cfg["metadata"]
    if facts["store"] != store.fingerprint:
        raise UserError(f"store {store.path}: the dictionary in {dictionary_folder} was trained on another one")
    store.check_finished()
    make_folder(output)
    kept = training_rows(store.rows, facts["spec"]["holdout"])
    block = block_rows(dictionary.latents, sum(method["l0"] for method in facts["spec"]["sparsity"].values()))
    ranges = [(0, kept), (kept, store.rows)] if kept < store.rows else [(0, kept)]
    with progress(store.rows, "measure") as bar, _Progress(bar):
        # One block at a time: its products use every core already.
        parts = dask.compute(
            [folded(dictionary_folder, place, *rows, block) for rows in ranges], scheduler="threads", num_workers=1
        )[0]
    held_out = parts[1] if len(parts) > 1 else None
    whole = parts[0].merge(held_out) if held_out else parts[0]
    _write(whole, held_out, store, facts, decoder_norm_shares(dictionary, store, facts["writes"]), output)


def block_rows(latents: int, l0: float) -> int:
    """Rows in a block: a whole number of batches, with about `BLOCK_PLACES` active places."""
    batch = batch_rows(latents)
    return max(1, int(BLOCK_PLACES / l0) // batch) * batch


def batch_rows(latents: int) -> int:
    """A power of two, as chunks are."""
    return 1 << max(0, (BATCH_PLACES // latents).bit_length() - 1)


def folded(dictionary_folder: pathlib.Path, place: Place, start: int, stop: int, block: int) -> Any:
    """A Dask task for the `Activity` of rows `start` to `stop`: blocks, merged in a tree that keeps their order."""
    level = [
        dask.delayed(measure_rows, pure=False)(dictionary_folder, place, first, min(first + block, stop))
        for first in range(start, stop, block)
    ]
    merge = dask.delayed(Activity.merge, pure=False)
    while len(level) > 1:
        level = [merge(*pair) if len(pair := level[i : i + 2]) == 2 else pair[0] for i in range(0, len(level), 2)]
    return level[0]


@torch.inference_mode()
def measure_rows(dictionary_folder: pathlib.Path, place: Place, start: int, stop: int) -> Activity:
    """The `Activity` of rows `start` to `stop`; a few rows around them are encoded too, for the examples' windows."""
    store = open_store(place)
    dictionary, cfg = load(dictionary_folder)
    dictionary.to("cuda" if torch.cuda.is_available() else "cpu")
    window = (BEFORE, AFTER) if store.has("rows/token") else (0, 0)
    low, high = max(0, start - window[0]), min(store.rows, stop + window[1])
    # The rows around have batches of their own, so that the others' products are the same however blocks are cut.
    edges = sorted({low, *range(start, stop, batch_rows(dictionary.latents)), stop, high})
    counts: list[np.ndarray] = []
    latents: list[np.ndarray] = []
    values: list[np.ndarray] = []
    reconstruction: Reconstruction | None = None
    for first, last in itertools.pairwise(edges):
        x_BP = _read(store, cfg["metadata"]["reads"], first, last).to(dictionary.b_dec.device)
        codes = dictionary.encode(x_BP)
        for found, part in zip((counts, latents, values), active_places(codes), strict=True):
            found.append(part.cpu().numpy())
        if start <= first < stop:
            y_BR = x_BP if dictionary.centered else _read(store, cfg["metadata"]["writes"], first, last).to(x_BP.device)
            batch = Reconstruction.of(y_BR, dictionary.decode(codes, x_BP))
            reconstruction = reconstruction.merge(batch) if reconstruction else batch
    assert reconstruction is not None, (start, stop)
    offsets_B1 = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    places = Places(low, offsets_B1, np.concatenate(latents), np.concatenate(values))
    unit = scale(store, cfg["metadata"]["writes"])
    return Activity(
        LatentStatistics.of(places, start, stop, dictionary.latents, histogram_edges(unit), window), reconstruction
    )


def active_places(codes: Codes) -> tuple[Tensor, Tensor, Tensor]:
    """How many latents are active in each row `(B,)`, which `(N,)`, and how much `(N,)`, row by row."""
    pattern, active = codes.pattern, codes.values_N > 0
    if isinstance(pattern, DensePattern):
        return active.sum(1), active.nonzero()[:, 1], codes.values_N[active]
    return (
        torch.bincount(pattern.rows_N[active], minlength=pattern.rows),
        pattern.latents_N[active],
        codes.values_N[active],
    )


def scale(store: Store, sites: list[str]) -> float:
    """The root mean squared distance of written activations from their mean: what activations are of the order of."""
    return sum(float(store.statistics(site).variance.sum()) for site in sites) ** 0.5 or 1.0


def _read(store: Store, sites: list[str], start: int, stop: int) -> Tensor:
    return torch.cat([store.read(store.site(site), start, stop).float() for site in sites], 1)


def _write(
    whole: Activity,
    held_out: Activity | None,
    store: Store,
    facts: dict[str, Any],
    shares_FS: np.ndarray | None,
    output: pathlib.Path,
) -> None:
    latents = whole.latents
    firing_F = latents.firing_F
    tensors = {
        "firing": firing_F,
        "firing_held_out": held_out.latents.firing_F if held_out else np.zeros_like(firing_F),
        "mean_activation": latents.sum_F / np.maximum(firing_F, 1),
        "max_activation": latents.example_values_FE[:, 0],
        "histogram": latents.histogram_FH,
        "histogram_edges": histogram_edges(scale(store, facts["writes"])),
        "example_rows": latents.example_rows_FE,
        "example_activations": latents.example_values_FE,
    }
    if shares_FS is not None:
        tensors["decoder_norm_share"] = shares_FS
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, output / "latents.safetensors")
    write_text(output / "examples.json", json.dumps(examples(store, latents), ensure_ascii=False) + "\n")
    summary = {
        "store": store.fingerprint,
        "latents": len(firing_F),
        "whole": figures(whole, store, facts["writes"]),
        "held_out": figures(held_out, store, facts["writes"]) if held_out else None,
        "density": density(firing_F, store.rows),
        "decoder_norm_share": None if shares_FS is None else _shares_of_live(shares_FS[firing_F > 0], facts["writes"]),
    }
    write_json(output / "summary.json", summary)


def figures(activity: Activity, store: Store, writes: list[str]) -> dict[str, Any]:
    """The scalars of some rows; explained variance is a share of 1, in the activations' own units."""
    rows, firing_F = activity.reconstruction.rows, activity.latents.firing_F
    return {
        "rows": rows,
        "explained_variance": activity.reconstruction.explained_variance(),
        "explained_variance_by_site": {
            site: activity.reconstruction.explained_variance(dimensions) for site, dimensions in _slices(store, writes)
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
        dictionary.W_dec[:, dimensions].norm(dim=1) / scale(store, [site])
        for site, dimensions in _slices(store, writes)
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


def _slices(store: Store, sites: list[str]) -> Iterator[tuple[str, slice]]:
    """Where each site lies in their concatenation."""
    at = 0
    for site in sites:
        yield site, slice(at, at := at + store.widths[store.site(site)])


class _Progress(Callback):  # type: ignore[misc]
    """Moves a bar by the rows of every block that is done."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar
        super().__init__(posttask=self._after)

    def _after(self, key: str, result: Any, *_: Any) -> None:
        if str(key).startswith("measure_rows"):
            self.bar.update(result.reconstruction.rows)
