"""The bench as a source of rows for an ordinary store, with the truth beside them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse
import torch

from harvest.bench.coefficients import BLOCK, FEATURES, coefficient_block, frequencies, parents, stream
from harvest.bench.config import BenchSpec
from harvest.bench.features import feature_matrix
from harvest.source import Column

VERSION = 1
"""Raised when the same spec gives other rows than before, so that old and new stores do not mix."""


class BenchSource:
    """Rows x = W c (eq. 32): coefficients c are shared by all sites, feature matrices W `(width, features)` are not.

    Row metadata: `truth/coefficients` `(rows, features)`. Tables: `truth/features/<site>` `(width, features)`,
    `truth/frequencies` `(features,)`, and with a hierarchy `truth/parents` `(features,)`, -1 for none.

    Raises:
        UserError: no feature matrix with the asked interference was found.
    """

    def __init__(self, spec: BenchSpec) -> None:
        self.spec = spec
        self.rows: int = spec.rows
        self.widths: Mapping[str, int] = spec.sites
        self.dtype: str = "float32"
        self.facts: Mapping[str, Any] = {"bench": spec.model_dump(mode="json"), "version": VERSION}
        self.columns: Mapping[str, Column] = {"truth/coefficients": Column("float32", spec.features)}
        # A site's stream is keyed by its name: another site beside it changes nothing.
        self.features_DN = {
            site: feature_matrix(spec.features, width, spec.interference, stream(spec, FEATURES, *site.encode()))
            for site, width in spec.sites.items()
        }
        tables = {f"truth/features/{site}": features_DN for site, features_DN in self.features_DN.items()}
        tables["truth/frequencies"] = frequencies(spec)
        if spec.hierarchy is not None:
            tables["truth/parents"] = parents(spec)
        self.tables: Mapping[str, np.ndarray] = tables

    def read_columns(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """`truth/coefficients` of rows `start` to `stop`, dense `(stop - start, features)` float32."""
        return {"truth/coefficients": self._coefficients(start, stop).toarray()}

    def read_sites(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        """Site -> rows `start` to `stop`, `(stop - start, width)` float32.

        A sparse product sums each row by itself, so its bits do not depend on the range asked for, as those of a dense
        product would.
        """
        c_BN = self._coefficients(start, stop)
        return {site: torch.from_numpy(c_BN @ features_DN.T) for site, features_DN in self.features_DN.items()}

    def _coefficients(self, start: int, stop: int) -> scipy.sparse.csr_array:
        assert 0 <= start < stop <= self.rows
        first, last = start // BLOCK, (stop - 1) // BLOCK
        blocks = [coefficient_block(self.spec, block) for block in range(first, last + 1)]
        return scipy.sparse.vstack(blocks, format="csr")[start - first * BLOCK : stop - first * BLOCK]
