"""A text tower reading a corpus, as a source of rows: one row a text, every site in one forward pass."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from harvest.config import HarvestSpec, ModelSpec
from harvest.corpora.corpus import Corpus
from harvest.errors import UserError
from harvest.model_source import batches, pad
from harvest.models.capture import Site, run_until_captured, text_inputs
from harvest.models.load import context_limit, load_model, load_tokenizer, model_facts
from harvest.models.sites import chosen_sites
from harvest.models.text_tower import TextTower
from harvest.source import Column, label_columns


class TextSource:
    """Row `i` is the corpus's sequence `i`, a whole document where that is no longer than `context`.

    The tower reads the tokenizer's end-of-text token after every text, as it was trained to, and texts padded to one
    length where it was trained on these. A row is what it computes at the last token, off which the embedding is read.
    """

    def __init__(self, model: ModelSpec, corpus: Corpus, harvest: HarvestSpec) -> None:
        self.corpus, self.batch_tokens = corpus, harvest.batch_tokens
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        tower = load_model(model, self.device)
        if not isinstance(tower, TextTower):
            raise UserError(f"rows: texts: is for the text towers of CLIP and SigLIP; {model.id} has rows: tokens")
        if corpus.facts["spec"]["pack"]:
            raise UserError("rows: texts: a packed corpus has several texts in a sequence; prepare it with pack: false")
        self.tower = tower
        limit = context_limit(tower)
        if limit is not None and corpus.longest + 1 > limit:
            raise UserError(
                f"context: {corpus.longest} and the end of the text are longer than this model allows; "
                f"at most {limit - 1}"
            )
        tokenizer = load_tokenizer(model)
        self.end: int = tokenizer.eos_token_id
        self.padded: tuple[int, int] | None = (limit or 0, tokenizer.pad_token_id) if tower.fixed_length else None
        self.sites, self.aliases = chosen_sites(tower, harvest.sites)
        self.rows = len(corpus.sequences) - 1
        self.dtype: str = model.dtype
        self.widths: Mapping[str, int] = {name: x_BD.shape[1] for name, x_BD in self._run(*self._texts(0, 1)).items()}
        if missing := [site.name for site in self.sites if site.name not in self.widths]:
            raise UserError(f"{missing[0]}: a forward pass of this model gives no vector a token or a text there")
        self.facts: Mapping[str, Any] = {
            "model": model_facts(model),
            "corpus": corpus.fingerprint,
            "sites": [site.name for site in self.sites],
            "rows_are": "texts",
            "dtype": model.dtype,
            "batch_tokens": harvest.batch_tokens,
        }
        # What labels tokens says nothing of a whole text.
        of_tokens = corpus.facts["spec"]["lexicons"]
        labels = {name: names for name, names in corpus.labels.items() if name not in of_tokens}
        self.columns: Mapping[str, Column] = {
            "rows/document": Column("int32"),
            **label_columns(labels),
        }
        self.tables: Mapping[str, np.ndarray] = {}

    def read_columns(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """`rows/document`, and what labels it: those of a text's first kept token."""
        first_N = self.corpus.row_offsets[start:stop]
        found = self.corpus.read_columns(int(first_N[0]), int(first_N[-1]) + 1)
        return {path: found[path][first_N - first_N[0]] for path in self.columns}

    def read_sites(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        dtype = getattr(torch, self.dtype)
        filled = {site: torch.empty(stop - start, width, dtype=dtype) for site, width in self.widths.items()}
        tokens, offsets = self._texts(start, stop)
        for batch in batches(np.diff(offsets), self.batch_tokens):
            for site, x_BD in self._run(tokens, offsets, batch).items():
                filled[site].index_copy_(0, torch.from_numpy(batch), x_BD.to("cpu", dtype))
        return filled

    def _texts(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of these texts, one after the other, as the tower reads them; and their offsets."""
        tokens, _, offsets = self.corpus.read_sequences(start, stop)
        if self.padded is None:
            return np.insert(tokens, offsets[1:], self.end), offsets + np.arange(len(offsets))
        length, filler = self.padded
        padded_NT = np.full((stop - start, length), filler, tokens.dtype)
        for row, (begin, end) in enumerate(itertools.pairwise(offsets)):
            padded_NT[row, : end - begin + 1] = [*tokens[begin:end], self.end]
        return padded_NT.flatten(), np.arange(stop - start + 1) * length

    def _run(self, tokens: np.ndarray, offsets: np.ndarray, batch: np.ndarray | None = None) -> dict[str, torch.Tensor]:
        """Site -> `(B, width)`."""
        batch = np.arange(len(offsets) - 1) if batch is None else batch
        ids_BT, mask_BT, _ = pad(batch, tokens, offsets)
        last_B = (mask_BT.sum(1) - 1).to(self.device)

        def take(_: Site, value: torch.Tensor) -> torch.Tensor:
            return value.clone() if value.ndim == 2 else value[torch.arange(len(value), device=value.device), last_B]

        return run_until_captured(self.tower, self.sites, text_inputs(self.tower, ids_BT, mask_BT), take)
