"""A model reading a corpus, as a source of rows: one row a kept token, every site in one forward pass."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from harvest.config import HarvestSpec, ModelSpec
from harvest.corpora.corpus import Corpus
from harvest.errors import UserError
from harvest.models.capture import Site, capture, site_widths
from harvest.models.load import context_limit, load_model, model_facts
from harvest.models.sites import chosen_sites
from harvest.source import Column, label_columns


class ModelSource:
    """Rows `start` to `stop` come from the sequences that hold them, run in batches of similar length.

    A sequence that straddles two shards is run for both, so that a shard's bytes depend on nothing but its number.
    """

    def __init__(self, model: ModelSpec, corpus: Corpus, harvest: HarvestSpec) -> None:
        if harvest.rows not in (None, "tokens"):
            raise UserError(f"rows: {harvest.rows}: is for images; a row of text is one of its tokens, or a text")
        self.corpus, self.batch_tokens = corpus, harvest.batch_tokens
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = load_model(model, self.device)
        limit = context_limit(self.model)
        if limit is not None and corpus.longest > limit:
            raise UserError(f"context: {corpus.longest} is longer than this model allows; at most {limit}")
        self.sites, self.aliases = chosen_sites(self.model, harvest.sites)
        self.rows = corpus.rows
        self.dtype: str = model.dtype
        self.widths: Mapping[str, int] = site_widths(self.model, self.sites)
        self.facts: Mapping[str, Any] = {
            "model": model_facts(model),
            "corpus": corpus.fingerprint,
            "sites": [site.name for site in self.sites],
            "dtype": model.dtype,
            "batch_tokens": harvest.batch_tokens,
        }
        self.columns: Mapping[str, Column] = {
            "rows/document": Column("int32"),
            "rows/position": Column("int32"),
            "rows/token": Column("int32"),
            **label_columns(corpus.labels),
        }
        self.tables: Mapping[str, np.ndarray] = corpus.vocabulary_tables()

    def read_columns(self, start: int, stop: int) -> dict[str, np.ndarray]:
        return self.corpus.read_columns(start, stop)

    def read_sites(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        first, last = self.corpus.sequences_of(start, stop)
        tokens, keep, offsets = self.corpus.read_sequences(first, last)
        rows = np.cumsum(keep) - 1 + self.corpus.row_offsets[first] - start
        wanted = keep & (rows >= 0) & (rows < stop - start)
        dtype = getattr(torch, self.dtype)
        filled = {site: torch.empty(stop - start, width, dtype=dtype) for site, width in self.widths.items()}
        for batch in batches(np.diff(offsets), self.batch_tokens):
            ids_BT, mask_BT, at_BT = pad(batch, tokens, offsets)
            chosen_BT = mask_BT.bool() & torch.from_numpy(wanted)[at_BT]
            to = torch.from_numpy(rows)[at_BT[chosen_BT]]
            # Selecting by number takes a tenth of the time that selecting by mask does.
            chosen = chosen_BT.flatten().nonzero()[:, 0]

            def take(site: Site, x_BTD: torch.Tensor, chosen: torch.Tensor = chosen, to: torch.Tensor = to) -> Any:
                x_ND = x_BTD.flatten(0, 1)
                if x_ND.device.type != "cpu":  # a model may be spread over several devices
                    return x_ND.index_select(0, chosen.to(x_ND.device))
                _copy_runs(x_ND, chosen, filled[site.name], to)
                return None

            captured = capture(self.model, self.sites, ids_BT, mask_BT, take)
            for site, x_nD in captured.items():
                if x_nD is not None:
                    filled[site].index_copy_(0, to, x_nD.to("cpu", dtype))
        return filled


def _copy_runs(x_ND: torch.Tensor, chosen_n: torch.Tensor, target: torch.Tensor, to_n: torch.Tensor) -> None:
    """`target[to] = x[chosen]`, run by run: tokens of one sequence lie next to each other in both. Picking rows one by
    one into memory of its own takes ten times as long, and the forward pass waits for it."""
    chosen, to = chosen_n.numpy(), to_n.numpy()
    begins = np.flatnonzero((np.diff(chosen, prepend=-2) != 1) | (np.diff(to, prepend=-2) != 1))
    for begin, end in itertools.pairwise([*begins.tolist(), len(chosen)]):
        target[to[begin] : to[begin] + end - begin] = x_ND[chosen[begin] : chosen[begin] + end - begin]


def batches(lengths: np.ndarray, batch_tokens: int) -> Iterator[np.ndarray]:
    """Sequence numbers, longest first, in batches of at most `batch_tokens` tokens with padding (one at the least).

    No sequence is shorter than three quarters of its batch's longest: documentation then fills 94% of what is run,
    not 81%.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        similar = int(np.count_nonzero(4 * lengths[order[start:]] >= 3 * longest))
        stop = start + max(1, min(similar, batch_tokens // longest))
        yield order[start:stop]
        start = stop


def pad(batch: np.ndarray, tokens: np.ndarray, offsets: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Right-padded token ids, their mask, and each token's place in `tokens`. Padding repeats a real token: the mask
    alone says what is padding, so no token id is special."""
    starts, lengths = offsets[batch], offsets[batch + 1] - offsets[batch]
    steps = np.arange(lengths.max())
    at = starts[:, None] + np.minimum(steps, lengths[:, None] - 1)
    mask = steps < lengths[:, None]
    return torch.from_numpy(tokens[at].astype(np.int64)), torch.from_numpy(mask.astype(np.int64)), torch.from_numpy(at)
