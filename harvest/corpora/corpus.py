"""A prepared corpus: token sequences to run a model on, and what is known of each kept token.

corpus.zarr/                        T tokens in S sequences, R of them kept; N documents; V token ids
  tokens, document, position        (T,) int32; position counts a document's ordinary tokens, -1 for special ones
  keep                              (T,) bool: false for special tokens; a kept token is a row
  labels/<set>                      (T,) int32 into the attribute `names`, -1 for none
  sequences, row_offsets            (S + 1,) int64: where each sequence begins among the tokens and among the rows
  documents/bytes, /offsets         names of the N documents, UTF-8, one after the other; (N + 1,) int64
  vocabulary/bytes, /offsets        the bytes each token id stands for; (V + 1,) int64
"""

import pathlib

import numpy as np

from harvest.corpora.prepared import Prepared


class Corpus(Prepared):
    """What `harvest.corpora.prepare` wrote, opened for reading. A row is a kept token.

    Only the offsets of the sequences (16 bytes each) are held in memory.
    Raises `UserError` if `path` is no such corpus.
    """

    schema = "corpus 1"

    def __init__(self, path: str | pathlib.Path) -> None:
        super().__init__(path)
        self.rows: int = self.facts["rows"]
        self.longest: int = self.facts["longest"]
        """The most tokens in a sequence, special ones included."""
        self.sequences = self._read("sequences", 0, None)
        self.row_offsets = self._read("row_offsets", 0, None)

    def sequences_of(self, start: int, stop: int) -> tuple[int, int]:
        """The sequences `[first, last)` that hold rows `start` to `stop`."""
        assert 0 <= start <= stop <= self.rows, (start, stop, self.rows)
        first = int(np.searchsorted(self.row_offsets, start, side="right")) - 1
        return first, max(first, int(np.searchsorted(self.row_offsets, stop, side="left")))

    def read_sequences(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens (t,) int32 and keep (t,) bool of sequences `[first, last)`, and their offsets from 0 in these."""
        begin, end = int(self.sequences[first]), int(self.sequences[last])
        return (
            self._read("tokens", begin, end),
            self._read("keep", begin, end),
            self.sequences[first : last + 1] - begin,
        )

    def read_columns(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """What is known of rows `start` to `stop`: `rows/document`, `rows/position`, `rows/token` and
        `rows/labels/<set>`, each (stop - start,) int32. A position counts the document's kept tokens from 0."""
        first, last = self.sequences_of(start, stop)
        begin, end = int(self.sequences[first]), int(self.sequences[last])
        before = int(self.row_offsets[first])
        chosen = np.flatnonzero(self._read("keep", begin, end))[start - before : stop - before]
        paths = {"rows/document": "document", "rows/position": "position", "rows/token": "tokens"}
        paths |= {f"rows/labels/{name}": f"labels/{name}" for name in self.labels}
        return {column: self._read(path, begin, end)[chosen] for column, path in paths.items()}

    def document_name(self, document: int) -> str:
        """What the document is called, such as `torch.nn.functional.relu`."""
        return self._string("documents", document)

    def vocabulary_tables(self) -> dict[str, np.ndarray]:
        """`vocabulary/bytes` (uint8) and `vocabulary/offsets` (V + 1,): token i is bytes offsets[i] to [i+1]."""
        return {path: self._read(path, 0, None) for path in ("vocabulary/bytes", "vocabulary/offsets")}
