import json
import pathlib
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch

from analyze import encoded as module
from analyze.encoded import EncodedRows, encode_store
from harvest.errors import UserError
from harvest.store import Store
from tests.texts import make_dictionary, make_store, words


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(words(), tmp_path_factory.mktemp("words"))


@pytest.fixture(autouse=True)
def many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_PLACES", 30 * 16)
    monkeypatch.setattr(module, "BLOCK_PLACES", 4 * 64)


def written(encoded: EncodedRows) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in encoded.folder.glob("*.safetensors")}


def test_codes_are_those_of_the_dictionary(store: Store, tmp_path: pathlib.Path) -> None:
    dictionary = make_dictionary(tmp_path, store, ["in"], ["out"])
    kept = 300
    encoded = encode_store(tmp_path, store.path, [0, kept, store.rows], tmp_path / "encoded")
    x_BD, y_BR = store.read("in", 0, store.rows), store.read("out", 0, store.rows)
    with torch.no_grad():
        dense_BF, error_BR = dictionary.encode(x_BD).dense().numpy(), (dictionary(x_BD) - y_BR).double()
    assert (encoded.rows, encoded.latents) == (store.rows, 30)
    assert [start for start, _ in encoded.ranges] == [*range(0, kept, 64), *range(kept, store.rows, 64)]
    for number, (start, stop) in enumerate(encoded.ranges):
        places, found_BF = encoded.block(number), np.zeros((stop - start, 30), np.float32)
        found_BF[np.repeat(np.arange(places.rows), np.diff(places.offsets_B1)), places.latents_N] = places.values_N
        np.testing.assert_allclose(found_BF, dense_BF[start:stop], rtol=1e-6)
        reconstruction = encoded.reconstruction(number)
        assert (places.start, reconstruction.rows) == (start, stop - start)
        np.testing.assert_allclose(reconstruction.error_R, error_BR[start:stop].square().sum(0), rtol=1e-5)


def test_goes_on_with_what_is_there(store: Store, tmp_path: pathlib.Path) -> None:
    make_dictionary(tmp_path, store, ["in"], ["in"])
    folder = tmp_path / "encoded"
    before = written(encode_store(tmp_path, store.path, [0, store.rows], folder))
    contents = {name: (folder / name).read_bytes() for name in before}
    (folder / "3.safetensors").rename(folder / "3.partial")  # killed while it was written
    (folder / "5.safetensors").unlink()
    after = written(encode_store(tmp_path, store.path, [0, store.rows], folder))
    assert {name for name in after if after[name] != before[name]} == {"3.safetensors", "5.safetensors"}
    assert {name: (folder / name).read_bytes() for name in after} == contents


def test_nothing_is_kept_of_another_dictionary_or_other_blocks(store: Store, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "encoded"
    make_dictionary(tmp_path, store, ["in"], ["in"])
    before = written(encode_store(tmp_path, store.path, [0, store.rows], folder))
    make_dictionary(tmp_path, store, ["in"], ["in"], dead=5)
    after = written(encode_store(tmp_path, store.path, [0, store.rows], folder))
    assert all(after[name] != before[name] for name in before)
    encode_store(tmp_path, store.path, [0, 100, store.rows], folder)
    assert json.loads((folder / "encoded.json").read_text())["ranges"][1] == [64, 100]


def test_a_disk_that_is_too_small(store: Store, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dictionary(tmp_path, store, ["in"], ["in"])
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 10))
    with pytest.raises(UserError, match=r"needs 0\.0 GB for a time, 0\.0 GB are free; make room"):
        encode_store(tmp_path, store.path, [0, store.rows], tmp_path / "encoded")
