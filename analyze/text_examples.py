"""The tokens around examples, with a latent's activation on every one.

Shapes: M examples, W tokens of a window.
"""

import codecs
import itertools
from typing import Any

import numpy as np

from analyze.encoded import EncodedRows
from analyze.windows import activations_at, column_at, digits
from harvest.store import Store

BEFORE, AFTER = 12, 8
"""Tokens of the same document shown before and after an example."""


class TextExamples:
    """Examples whose rows are tokens of a store."""

    width = BEFORE + 1 + AFTER

    def __init__(self, store: Store) -> None:
        self.store = store
        text = np.asarray(store.array("vocabulary/bytes")[:]).tobytes()
        offsets = np.asarray(store.array("vocabulary/offsets")[:]).tolist()
        self.pieces = [text[start:stop] for start, stop in itertools.pairwise(offsets)]
        self.texts = [_decoded(piece) for piece in self.pieces]
        """What a token says by itself; None where it ends inside a character or begins there."""

    def look(self, row_M: np.ndarray, latent_M: np.ndarray, encoded: EncodedRows) -> None:
        """Read what is around these examples, for `describe`."""
        rows_MW = row_M[:, None] + np.arange(-BEFORE, AFTER + 1)
        documents_MW = column_at(self.store, "rows/document", rows_MW)
        # Rows of a document lie next to each other.
        kept_MW = documents_MW == documents_MW[:, BEFORE, None]
        self.first_M, self.count_M = kept_MW.argmax(1).tolist(), kept_MW.sum(1).tolist()
        self.tokens_MW = column_at(self.store, "rows/token", rows_MW)
        self.activations_MW = digits(activations_at(encoded, latent_M, np.where(kept_MW, rows_MW, -1)), 3)

    def describe(self, example: int, texts: dict[str, int]) -> dict[str, Any]:
        """`tokens`, `activations` and `peak` of one of the examples looked at. New texts are given a place in `texts`.

        Tokens that share a character are one entry, with the larger activation.
        """
        first = self.first_M[example]
        window = slice(first, first + self.count_M[example])
        tokens = self.tokens_MW[example, window].tolist()
        activations, peak = self.activations_MW[example, window].tolist(), BEFORE - first
        said = [self.texts[token] for token in tokens]
        if None in said:
            said, which = join_tokens([self.pieces[token] for token in tokens])
            joined = np.zeros(len(said))
            np.maximum.at(joined, which, activations)
            activations, peak = joined.tolist(), which[peak]
        return {
            "tokens": [texts.setdefault(text, len(texts)) for text in said],
            "activations": activations,
            "peak": peak,
        }


def _decoded(piece: bytes) -> str | None:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return None


def join_tokens(pieces: list[bytes]) -> tuple[list[str], list[int]]:
    """Texts of tokens, and which of these each token went to: tokens are joined while they end inside a character.

    Bytes that are no UTF-8, such as a character cut off by the window, become U+FFFD.
    """
    texts: list[str] = []
    which: list[int] = []
    pending = b""
    for piece in pieces:
        which.append(len(texts))
        pending += piece
        if not _ends_inside_character(pending):
            texts.append(pending.decode(errors="replace"))
            pending = b""
    return texts + ([pending.decode(errors="replace")] if pending else []), which


def _ends_inside_character(text: bytes) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    decoder.decode(text)
    return decoder.getstate()[0] != b""
