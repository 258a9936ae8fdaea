"""The figures of the recovery page: what each is called, what it is in one sentence, and where it is from."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    key: str
    label: str
    definition: str
    """One sentence with its source; sections, equations and theorems are those of arXiv 2512.05534."""
    form: str = "decimal"
    """The filter that writes it."""


DIRECTIONS = (
    Figure(
        "m_gt",
        "M_GT",
        "Share of features for which a latent’s raw inner product |⟨w_E, w_p⟩| is above τ = 0.95, W_E not normalised, "
        "so that it rewards scale as well as direction (section 5.1).",
    ),
    Figure(
        "m_ip",
        "M_IP",
        "Mean over features of the largest raw inner product |⟨w_E, w_p⟩| with any latent, which rewards scale as well "
        "as direction (section 5.1).",
    ),
    Figure(
        "encoder_cosine",
        "Encoder cosine",
        "Mean over features of the largest cosine between w_p and a row of W_E; with more features than dimensions the "
        "encoder of least error is a whitening filter and not W_pᵀ, so that it can fall while recovery improves "
        "(section 5.1’s score with W_E normalised).",
    ),
    Figure(
        "decoder_cosine",
        "Decoder cosine",
        "Mean over features of the largest cosine between w_r and a column of W_D (theorem 3.3’s W_D has 1).",
    ),
    Figure(
        "mcc",
        "MCC",
        "Mean over features of the decoder cosine with the one latent matched to each, under the one-to-one match with "
        "the largest sum (Hungarian method, Kuhn 1955).",
    ),
    Figure(
        "decoder_recovery",
        "Decoder recovery",
        "Share of features that a column of W_D meets with a cosine above 0.95: M_GT (section 5.1) blind to scale.",
    ),
)
FIRING = (
    Figure(
        "precision",
        "Precision",
        "Of the rows in which the latent matched to a feature is active, the share in which the feature is on, mean "
        "over features (on: a coefficient above 0, eq. 30).",
    ),
    Figure(
        "recall",
        "Recall",
        "Of the rows in which a feature is on, the share in which the latent matched to it is active, mean over "
        "features (on: a coefficient above 0, eq. 30).",
    ),
    Figure(
        "firing_f1",
        "F1",
        "Harmonic mean of a feature’s firing precision and recall, mean over features (on: a coefficient above 0, "
        "eq. 30).",
    ),
    Figure(
        "polysemantic",
        "Polysemantic",
        "Of the latents that some feature switches on when it appears alone, the share that two or more do "
        "(definition 3.1).",
        "share",
    ),
    Figure(
        "absorption",
        "Absorption",
        "Share of a parent’s rows in which its latent is silent and that of a child that is on is active, mean over "
        "parents (theorem 3.8, Figure 5).",
        "share",
    ),
)
RECONSTRUCTION = (
    Figure(
        "explained_variance",
        "Explained variance",
        "1 − Σ‖x − x̂‖² / Σ‖x − x̄‖² in the activations’ own units, on the rows held out from training, if any were (the "
        "loss of eq. 3 as a share of the variance).",
    ),
    Figure(
        "dead",
        "Dead",
        "Share of latents that are active in no row of the store (definition 3.1’s dead latents, observed).",
        "share",
    ),
    Figure(
        "l0",
        "l0",
        "Mean number of active latents per row, ‖σ(W_E x_p)‖₀ (eq. 1), on the rows held out from training, if any "
        "were; marked where it is more than 10 % off its target.",
        "number",
    ),
)
TARGET = Figure("target_l0", "l0 target", "The l0 that the config asked for (k of eq. 7).", "number")
