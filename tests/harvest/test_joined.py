"""Several stores read as one, against their arrays side by side."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harvest.errors import UserError
from harvest.joined import open_store
from harvest.source import Column
from tests.texts import Texts, make_store, words


class Read(Texts):
    """Texts as a model reads them: its own activations, a corpus that others read too."""

    def __init__(self, corpus: str, scale: float, source: Texts | None = None, dtype: str = "float32") -> None:
        self.__dict__ |= vars(source or words())
        self.facts = {"corpus": corpus, "model": scale}
        self.dtype = dtype
        self.sites = {site: (scale * x).to(getattr(torch, dtype)) for site, x in self.sites.items()}


class Pictures(Read):
    """Images as a model sees them: rows that have a number and no token."""

    def __init__(self, corpus: str) -> None:
        super().__init__(corpus, 1.0)
        self.columns, self.tables = {"rows/document": Column("int32")}, {}

    def read_columns(self, start: int, stop: int) -> dict[str, np.ndarray]:
        return {"rows/document": np.arange(start, stop, dtype=np.int32)}


class Stopped(Read):
    """A harvest that is killed after its first shard."""

    def read_sites(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        if start > 0:
            raise KeyboardInterrupt
        return super().read_sites(start, stop)


def stores(folder: Path, **sources: Any) -> list[Path]:
    for name, source in sources.items():
        (folder / name).mkdir()
        make_store(source, folder / name)
    return [folder / name / "activations.zarr" for name in sources]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return stores(tmp_path_factory.mktemp("pair"), base=Read("c", 1.0), chat=Read("c", 3.0))


@given(data=st.data())
def test_every_range_is_that_of_its_store(pair: list[Path], data: st.DataObject) -> None:
    joined = open_store(pair)
    start = data.draw(st.integers(0, joined.rows - 1))
    stop = data.draw(st.integers(start + 1, joined.rows))
    for path in pair:
        alone = open_store(path)
        for site in alone.widths:
            name = joined.site(f"{path.parent.name}/{site}")
            assert torch.equal(joined.read(name, start, stop), alone.read(site, start, stop))
            assert joined.widths[name] == alone.widths[site]


def test_statistics_and_metadata(pair: list[Path]) -> None:
    joined, base, chat = open_store(pair), open_store(pair[0]), open_store(pair[1])
    assert joined.rows == base.rows
    assert joined.finished.all()
    assert joined.labels == base.labels
    assert (joined.statistics("chat/in").mean == chat.statistics("in").mean).all()
    assert (np.asarray(joined.array("rows/token")[:]) == np.asarray(base.array("rows/token")[:])).all()
    assert torch.equal(torch.from_numpy(np.asarray(joined.array("sites/chat/in")[:])), chat.read("in", 0, chat.rows))
    assert joined.fingerprint not in (base.fingerprint, chat.fingerprint)
    assert joined.fingerprint != open_store(pair[::-1]).fingerprint
    with pytest.raises(UserError, match=r"in: no such site; they are called base/<site>, chat/<site>"):
        joined.site("in")
    with pytest.raises(UserError, match=r"nothing: no such site"):
        joined.site("base/nothing")


def test_equal_tokens_of_different_corpora_are_the_same_rows(tmp_path: Path) -> None:
    """Two models' tokenizers may agree on every text and still have different vocabularies."""
    assert open_store(stores(tmp_path, base=Read("c", 1.0), chat=Read("other", 3.0))).rows == words().rows


def test_different_rows_are_one_line_each(tmp_path: Path) -> None:
    more, other, bench = Read("d", 1.0, words(1, 50)), Read("e", 1.0), words()
    other.token = other.token.copy()
    other.token[17] += 1
    half = Read("c", 1.0, dtype="float16")
    base, *rest = stores(tmp_path, base=Read("c", 1.0), more=more, other=other, bench=bench, half=half)
    messages = ["rows; both must be", "rows/token differs at row 17", "only rows from a corpus", "the same dtype"]
    for path, message in zip(rest, messages, strict=True):
        with pytest.raises(UserError, match=message) as raised:
            open_store([base, path])
        assert str(base) in str(raised.value)
        assert str(path) in str(raised.value)
    with pytest.raises(UserError, match="their folders must have different names"):
        open_store([base, base])


def test_images_of_different_corpora_are_different_rows(tmp_path: Path) -> None:
    """Every corpus of as many images has the same numbers."""
    one, same, other = stores(tmp_path, one=Pictures("digits"), same=Pictures("digits"), other=Pictures("photos"))
    assert open_store([one, same]).rows == words().rows
    with pytest.raises(UserError, match="rows of images are only told by their corpus") as raised:
        open_store([one, other])
    assert str(one) in str(raised.value)
    assert str(other) in str(raised.value)


def test_the_store_that_is_unfinished_is_named(tmp_path: Path) -> None:
    (base,) = stores(tmp_path, base=Read("c", 1.0))
    with pytest.raises(KeyboardInterrupt):
        stores(tmp_path, chat=Stopped("c", 1.0))
    chat = tmp_path / "chat/activations.zarr"
    for pair in ([base, chat], [chat, base]):
        with pytest.raises(UserError, match=f"^store {chat}: is not finished"):
            open_store(pair).check_finished()


def test_a_store_in_the_working_folder_is_called_after_it(pair: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pair[0].parent)
    assert list(open_store([Path("activations.zarr"), pair[1]]).widths) == list(open_store(pair).widths)
