"""The figures of a latent in the feature browser: what each is called, what it is in one sentence, where it is from."""

from analyze.report.definitions import Figure

OF_LATENTS = (
    Figure("rate", "Active in", "Share of the store’s rows in which the latent is active (firing / rows).", "share"),
    Figure(
        "rate_held_out",
        "Held out",
        "Share of the rows that training never saw in which the latent is active (firing_held_out / held-out rows).",
        "share",
    ),
    Figure("mean", "Mean", "Mean activation over the rows in which it is active (mean_activation).", "number"),
    Figure("max", "Max", "Largest activation in the store (max_activation).", "number"),
    Figure(
        "token_purity",
        "Token purity",
        "Of the rows in which the latent is active, the share that are its most common token (token_purity).",
        "share",
    ),
    Figure(
        "score",
        "MS score",
        "Mean similarity of the embeddings of the rows in which the latent is active, each pair weighted by both "
        "activations, in an embedding it was not trained on (Pach et al. 2025, arXiv 2504.02821).",
        "decimal",
    ),
    Figure(
        "encoder_decoder_cosine",
        "Encoder–decoder",
        "Cosine between the latent’s encoder row and its decoder row: near 1 it writes the direction that it reads "
        "(encoder_decoder_cosine).",
        "decimal",
    ),
)
OF_LABELS = (
    Figure(
        "f1",
        "F1",
        "Harmonic mean of precision and recall, of the latent being active as a sign of its best label, the one with "
        "the largest (van Rijsbergen 1979).",
        "decimal",
    ),
    Figure(
        "precision",
        "Precision",
        "Of the rows in which the latent is active, the share that carry its best label.",
        "decimal",
    ),
    Figure(
        "recall", "Recall", "Of the rows that carry its best label, the share in which the latent is active.", "decimal"
    ),
    Figure(
        "auc",
        "AUC",
        "Chance that the latent is more active in a row with its best label than in one without it, ties counted half "
        "(Mann and Whitney 1947).",
        "decimal",
    ),
    Figure(
        "entropy",
        "Entropy",
        "Entropy −Σ p log₂ p in bits of the share p of its activation that falls on each label, none being one more: 0 "
        "where all of it falls on one (Shannon 1948).",
        "number",
    ),
    Figure("purity", "Purity", "Share of the top 20 examples that carry its best label.", "share"),
)
SHARE_OF_NORM = (
    "Share of the latent’s decoder norm that lies at this site, in units of the site’s spread (Lindsey et al. 2024)."
)
