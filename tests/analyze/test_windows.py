import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyze import encoded as module
from analyze import windows
from analyze.encoded import encode_store
from analyze.windows import activations_at, column_at, digits
from tests.texts import make_dictionary, make_store, words


def test_look_ups(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_PLACES", 30 * 16)
    monkeypatch.setattr(module, "BLOCK_PLACES", 4 * 64)
    monkeypatch.setattr(windows, "ROWS_AT_ONCE", 100)
    source = words()
    store = make_store(source, tmp_path)
    dictionary = make_dictionary(tmp_path, store, ["in"], ["in"])
    dense_BF = dictionary.encode(source.sites["in"]).dense().detach().numpy()
    encoded = encode_store(tmp_path, store.path, [0, store.rows], tmp_path / "encoded")
    random = np.random.default_rng(0)
    latent_M, rows_MW = random.integers(0, 30, 500), random.integers(-20, store.rows + 20, (500, 7))
    there_MW = (rows_MW >= 0) & (rows_MW < store.rows)
    wanted_MW = np.where(there_MW, dense_BF[rows_MW.clip(0, store.rows - 1), latent_M[:, None]], 0)
    np.testing.assert_allclose(activations_at(encoded, latent_M, rows_MW), wanted_MW, rtol=1e-6)
    tokens_MW = np.where(there_MW, source.token[rows_MW.clip(0, store.rows - 1)], -1)
    np.testing.assert_array_equal(column_at(store, "rows/token", rows_MW), tokens_MW)


@given(st.floats(1e-15, 1e15) | st.just(0.0), st.integers(1, 6))
def test_digits(value: float, count: int) -> None:
    (found,) = digits(np.array([value]), count).tolist()
    assert abs(found - value) <= 0.5 * 10.0 ** (np.floor(np.log10(value or 1.0)) - count + 1) * (1 + 1e-9)
    assert len(f"{found!r}".partition("e")[0].replace(".", "").strip("0")) <= count
