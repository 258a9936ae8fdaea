"""When latents fire beside the features they stand for, counted in one pass over the bench's store.

Shapes: N features, F latents, B rows, n active places.
"""

import itertools
import pathlib
from dataclasses import dataclass

import numpy as np
import torch

from analyze.encoded import active_places, batch_rows
from harvest.location import Location
from harvest.store import Store
from train.dictionary import Dictionary
from train.files import load


@dataclass(frozen=True)
class Firing:
    """Counts over some rows, of features and of the latents matched to them."""

    fired_F: np.ndarray
    """Rows in which each latent is active."""
    on_N: np.ndarray
    """Rows in which each feature is on."""
    both_N: np.ndarray
    """Rows in which each feature is on and its latent is active."""
    coefficients_N: np.ndarray
    """Sum of each feature's coefficients."""
    absorbed_N: np.ndarray
    """Rows in which a feature is on and its latent is not, but one of its children is on and that one's latent is."""

    def merge(self, later: "Firing") -> "Firing":
        return Firing(*(ours + theirs for ours, theirs in zip(vars(self).values(), vars(later).values(), strict=True)))

    def scores(self, matched_N: np.ndarray, parents_N: np.ndarray) -> dict[str, np.ndarray]:
        """Each `(N,)`, NaN where the feature is never on.

        `precision`, `recall` and `firing_f1` of a latent's being active as a sign of its feature's being on; precision
        is 0 for a latent that is never active. `absorption`: the share of a parent's rows in which its children's
        latents are active in place of its own; NaN for features that are no parents.
        """
        fired_N = self.fired_F[matched_N]  # whichever's, where there is no match: `both` is 0 there
        on_N = np.where(self.on_N > 0, self.on_N, np.nan)
        is_parent_N = np.isin(np.arange(len(parents_N)), parents_N)
        return {
            "precision": np.where(self.on_N > 0, self.both_N / np.maximum(fired_N, 1), np.nan),
            "recall": self.both_N / on_N,
            "firing_f1": 2 * self.both_N / (fired_N + on_N),
            "absorption": np.where(is_parent_N, self.absorbed_N / on_N, np.nan),
        }

    @property
    def magnitude_N(self) -> np.ndarray:
        """Mean coefficient when on; the mean of all for features that never are."""
        everything = self.coefficients_N.sum() / max(1, self.on_N.sum())
        return np.asarray(np.where(self.on_N > 0, self.coefficients_N / np.maximum(self.on_N, 1), everything))


@torch.inference_mode()
def firing_of_rows(
    block: tuple[int, int], dictionary_folder: pathlib.Path, store_path: Location, matched_N: np.ndarray
) -> Firing:
    """The `Firing` of rows `block[0]` to `block[1]`."""
    store = Store(store_path)
    dictionary, cfg = load(dictionary_folder)
    dictionary.to("cuda" if torch.cuda.is_available() else "cpu")
    parents_N = parents_of(store)
    feature_F = np.full(dictionary.latents, -1)
    feature_F[matched_N[matched_N >= 0]] = np.flatnonzero(matched_N >= 0)
    found: Firing | None = None
    for start, stop in itertools.pairwise([*range(*block, batch_rows(dictionary.latents)), block[1]]):
        x_BP = torch.cat([store.read(site, start, stop).float() for site in cfg["metadata"]["reads"]], 1)
        rows_n, latents_n = active_latents(dictionary, x_BP)
        coefficients_BN = np.asarray(store.array("truth/coefficients")[start:stop])
        on_BN, active_BN = coefficients_BN > 0, np.zeros(coefficients_BN.shape, dtype=bool)
        matched_n = feature_F[latents_n] >= 0
        active_BN[rows_n[matched_n], feature_F[latents_n[matched_n]]] = True
        both_BN = on_BN & active_BN
        heard_BN = np.zeros_like(both_BN)
        rows, children = np.nonzero(both_BN & (parents_N >= 0))
        heard_BN[rows, parents_N[children]] = True
        batch = Firing(
            np.bincount(latents_n, minlength=dictionary.latents),
            on_BN.sum(0),
            both_BN.sum(0),
            coefficients_BN.sum(0, dtype=np.float64),
            (on_BN & ~active_BN & heard_BN).sum(0),
        )
        found = found.merge(batch) if found else batch
    assert found is not None, block
    return found


def active_latents(dictionary: Dictionary, x_BP: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Row and latent of every active place, `(n,)` each."""
    codes = dictionary.encode(x_BP.to(dictionary.b_dec.device))
    counts_B, latents_n, _ = (part.cpu().numpy() for part in active_places(codes))
    return np.repeat(np.arange(len(counts_B)), counts_B), latents_n


def parents_of(store: Store) -> np.ndarray:
    """Each feature's parent, `(N,)`, -1 for none."""
    if store.has("truth/parents"):
        return np.asarray(store.array("truth/parents")[:])
    return np.full(store.array("truth/frequencies").shape[0], -1)
