"""How well latents and labels mean each other.

Shapes: F latents, L labels, B rows, n active places of a latent. A row without a label has -1.
"""

from dataclasses import dataclass

import numpy as np

from analyze.encoded import Places


@dataclass(frozen=True)
class Judged:
    """Of every latent the label that it is the best sign of, by F1, and of every label the latent; -1 for none."""

    firing_F: np.ndarray
    hits_FL: np.ndarray
    best_label_F: np.ndarray
    best_latent_L: np.ndarray
    f1_FL: np.ndarray
    precision_F: np.ndarray
    recall_F: np.ndarray

    @staticmethod
    def of(firing_F: np.ndarray, hits_FL: np.ndarray, rows_L: np.ndarray) -> "Judged":
        """`hits_FL`: rows of each label in which a latent is active. The first of equals is the best.

        Figures of dead latents are NaN; F1 and precision of live ones that are active in no labelled row are 0.
        """
        f1_FL = 2 * hits_FL / np.maximum(firing_F[:, None] + rows_L, 1)
        best_F = np.where(hits_FL.any(1), f1_FL.argmax(1), -1)
        best_L = np.where(hits_FL.any(0), f1_FL.argmax(0), -1)
        hits_F = np.where(best_F >= 0, np.take_along_axis(hits_FL, best_F[:, None].clip(0), 1)[:, 0], 0)
        live_F = np.where(firing_F > 0, firing_F, np.nan)
        rows_F = np.where(best_F >= 0, rows_L[best_F], np.nan)
        return Judged(firing_F, hits_FL, best_F, best_L, f1_FL, hits_F / live_F, hits_F / rows_F)

    @property
    def f1_F(self) -> np.ndarray:
        """Of each latent as a sign of its best label."""
        found_F: np.ndarray = np.where(np.isnan(self.precision_F), np.nan, self.f1_FL.max(1))
        return found_F

    @property
    def f1_L(self) -> np.ndarray:
        """Of each label's best latent."""
        found_L: np.ndarray = self.f1_FL.max(0)
        return found_L

    @property
    def stands_F(self) -> np.ndarray:
        """Whether a latent stands for its best label: its F1 is at least half of that of the label's best latent."""
        found_F: np.ndarray = (self.best_label_F >= 0) & (self.f1_FL.max(1) >= self.f1_L[self.best_label_F] / 2)
        return found_F

    @property
    def special_F(self) -> np.ndarray:
        """Whether a latent is for its best label in most of its rows, but in too few of the label's to stand for it."""
        found_F: np.ndarray = (self.best_label_F >= 0) & ~self.stands_F & (self.precision_F >= 0.5)
        return found_F

    @property
    def sharing_L(self) -> np.ndarray:
        """How many latents stand for each label."""
        return np.bincount(self.best_label_F[self.stands_F], minlength=self.f1_FL.shape[1])


def absorbed_rows(places: Places, label_B: np.ndarray, judged: Judged) -> np.ndarray:
    """Rows of each label in which no latent that stands for it is active, but a more special one is: `(L,)`.

    After the absorption of Chanin et al. 2024 (arXiv 2409.14507), where latents are known by a probe.
    """
    row_N = np.repeat(np.arange(places.rows), np.diff(places.offsets_B1))
    meant_N = (judged.best_label_F[places.latents_N] == label_B[row_N]) & (label_B[row_N] >= 0)
    stands_B, special_B = np.zeros(places.rows, bool), np.zeros(places.rows, bool)
    stands_B[row_N[meant_N & judged.stands_F[places.latents_N]]] = True
    special_B[row_N[meant_N & judged.special_F[places.latents_N]]] = True
    return np.bincount(label_B[special_B & ~stands_B], minlength=judged.f1_FL.shape[1])


def auc(values_n: np.ndarray, is_label_n: np.ndarray, label_rows: int, other_rows: int) -> float:
    """The chance that a row with the label has a larger activation than one without it, ties counted half.

    `values_n` are a latent's activations where it is active, `is_label_n` whether these rows have the label; in all
    others it is 0 (Mann and Whitney 1947). NaN where all rows or none have the label.
    """
    if not (label_rows and other_rows):
        return float("nan")
    others_n = np.sort(values_n[~is_label_n])
    ours_n = values_n[is_label_n]
    inactive = other_rows - len(others_n)
    below = np.searchsorted(others_n, ours_n, "left").sum() + np.searchsorted(others_n, ours_n, "right").sum()
    wins = len(ours_n) * inactive + below / 2 + (label_rows - len(ours_n)) * inactive / 2
    return float(wins / (label_rows * other_rows))


def entropy(sum_FL: np.ndarray, sum_F: np.ndarray) -> np.ndarray:
    """−Σ p log₂ p, `(F,)` in bits, of the shares p of a latent's activation that fall on each label, or on none; NaN
    for a dead latent (Shannon 1948)."""
    none_F1 = np.maximum(sum_F - sum_FL.sum(1), 0)[:, None]
    share_FX = np.concatenate([sum_FL, none_F1], 1) / np.where(sum_F > 0, sum_F, np.nan)[:, None]
    # Rounding leaves next to nothing where nothing is.
    terms_FX = -share_FX * np.log2(share_FX, out=np.zeros_like(share_FX), where=share_FX > 1e-12)
    bits_F: np.ndarray = terms_FX.sum(1)
    return bits_F


def purity(example_labels_FE: np.ndarray, best_label_F: np.ndarray, examples_F: np.ndarray) -> np.ndarray:
    """Share of a latent's examples that carry its best label, `(F,)`; NaN where it has none."""
    pure_F = ((example_labels_FE == best_label_F[:, None]) & (best_label_F >= 0)[:, None]).sum(1)
    found_F: np.ndarray = pure_F / np.where((best_label_F >= 0) & (examples_F > 0), examples_F, np.nan)
    return found_F
