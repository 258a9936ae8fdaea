"""The store as files: how it is laid out, what anyone reads from it, and its statistics."""

import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from harvest.errors import UserError
from harvest.layout import CHUNK_BYTES, SHARD_BYTES, Layout
from harvest.run import harvest
from harvest.store import Store
from tests.arithmetic import Arithmetic

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}


def harvested(folder: Path, source: Arithmetic, **aliases: str) -> Store:
    harvest(source, folder / "activations.zarr", folder / "activations.manifest.json", aliases)
    return Store(folder / "activations.zarr")


@given(st.integers(1, 10**9), st.integers(1, 10**5), st.sampled_from(sorted(ITEMSIZE)))
def test_layout_follows_from_byte_targets(rows: int, width: int, dtype: str) -> None:
    layout = Layout.of(rows, {"narrow": 1, "wide": width}, dtype)
    row_bytes = width * ITEMSIZE[dtype]
    shards = math.ceil(rows / layout.shard_rows)
    assert layout.shard_rows % layout.chunk_rows == 0
    assert layout.chunk_rows * row_bytes <= CHUNK_BYTES
    assert layout.shard_rows * row_bytes <= SHARD_BYTES
    assert shards >= min(rows, 16)
    if shards > 64:  # a large store: nothing but the targets decides
        assert layout.chunk_rows * row_bytes > CHUNK_BYTES // 2
        assert layout.shard_rows * row_bytes > SHARD_BYTES - CHUNK_BYTES


def test_layout_of_wide_rows() -> None:
    for width in (CHUNK_BYTES, SHARD_BYTES):
        assert Layout.of(100, {"x": width}, "float32").chunk_rows == 1


@pytest.mark.parametrize("dtype", sorted(ITEMSIZE))
def test_zarr_alone_reads_everything(tmp_path: Path, dtype: str) -> None:
    source = Arithmetic(dtype=dtype)
    store = harvested(tmp_path, source)
    group = zarr.open_group(tmp_path / "activations.zarr", mode="r")
    for site, values in source.read_sites(0, source.rows).items():
        raw = group[f"sites/{site}"]
        assert raw.attrs["torch_dtype"] == dtype
        view = raw[:] if dtype != "bfloat16" else (raw[:].astype(np.uint32) << 16).view(np.float32)
        assert np.array_equal(view.astype(np.float32), values.float().numpy())
        assert torch.equal(store.read(site, 0, source.rows), values)
        assert torch.equal(store.read(site, 17, 41), values[17:41])
    for path, values in source.read_columns(0, source.rows).items():
        assert np.array_equal(group[path][:], values)
        assert group[path].dtype == source.columns[path].dtype
    assert group["rows/labels/parity"].attrs["names"] == ["even", "odd"]
    assert np.array_equal(group["vocabulary/bytes"][:], np.arange(9))
    assert store.labels == {"parity": ["even", "odd"]}


def test_bfloat16_bits_survive(tmp_path: Path) -> None:
    """All 65,280 finite patterns: subnormal numbers and both zeros among them."""
    patterns = np.arange(2**16, dtype=np.uint16)
    finite = patterns[patterns & 0x7F80 != 0x7F80].reshape(-1, 255)

    class Patterns(Arithmetic):
        def read_sites(self, start: int, stop: int) -> dict[str, torch.Tensor]:
            return {"x": torch.from_numpy(finite[start:stop].copy()).view(torch.bfloat16)}

    store = harvested(tmp_path, Patterns(256, widths={"x": 255}))
    assert np.array_equal(store.read("x", 0, 256).view(torch.uint16).numpy(), finite)
    assert np.array_equal(zarr.open_group(store.path, mode="r")["sites/x"][:], finite)


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    class Overflowing(Arithmetic):
        def read_sites(self, start: int, stop: int) -> dict[str, torch.Tensor]:
            return {"x": (torch.arange(start, stop) == 77)[:, None].float().mul(1e6).to(torch.float16)}

    with pytest.raises(UserError, match=r"^x: row 77 is not finite in float16; take a dtype with a wider range$"):
        harvested(tmp_path, Overflowing(100, "float16", widths={"x": 1}))
    assert not Store(tmp_path / "activations.zarr").finished.all()
    assert not (tmp_path / "activations.manifest.json").exists()


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 700), st.integers(1, 9), st.sampled_from(sorted(ITEMSIZE)), st.integers(0, 10**6))
def test_statistics_merged_over_shards(rows: int, width: int, dtype: str, seed: int) -> None:
    source = Arithmetic(rows, dtype, seed=seed, widths={"x": width})
    source.columns = {}
    with tempfile.TemporaryDirectory() as folder:
        store = harvested(Path(folder), source)
        found = store.statistics("x")
    x_ND = source.read_sites(0, rows)["x"].double().numpy()
    assert found.rows == rows
    np.testing.assert_allclose(found.mean, x_ND.mean(0), rtol=1e-12, atol=1e-11)
    np.testing.assert_allclose(found.variance, x_ND.var(0), rtol=1e-10, atol=1e-9)
    np.testing.assert_allclose(found.mean_norm, np.linalg.norm(x_ND, axis=1).mean(), rtol=1e-12)


def test_variance_far_from_zero(tmp_path: Path) -> None:
    """A mean a million times the deviation: sums of squares would lose every digit."""

    class Far(Arithmetic):
        def read_sites(self, start: int, stop: int) -> dict[str, torch.Tensor]:
            rows_N = torch.arange(start, stop)
            return {"x": (4e6 + rows_N % 2)[:, None].float()}

    found = harvested(tmp_path, Far(1000, "float32", widths={"x": 1})).statistics("x")
    np.testing.assert_allclose(found.variance, [0.25], rtol=1e-12)


def test_sites_by_alias(tmp_path: Path) -> None:
    source = Arithmetic()
    harvested(tmp_path, source, **{"layers.0%.a": "layers.0.a"})
    # The same rows under another name: nothing to compute, but the name is understood from now on.
    store = harvested(tmp_path, source, **{"layers.100%.b": "layers.1.b"})
    assert store.site("layers.0%.a") == store.site("layers.0.a") == "layers.0.a"
    assert store.site("layers.100%.b") == "layers.1.b"
    with pytest.raises(UserError, match=r"^layers.7.a: no such site in .*; it has layers.0.a, layers.1.b$"):
        store.site("layers.7.a")


def test_what_is_no_store_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no Zarr v3 group; run the harvest first"):
        Store(tmp_path / "absent")
    (tmp_path / "file").write_text("text")
    with pytest.raises(UserError, match="is no Zarr v3 group"):
        Store(tmp_path / "file")
    zarr.create_group(tmp_path / "other")
    with pytest.raises(UserError, match="has schema None, this version reads 1"):
        Store(tmp_path / "other")
