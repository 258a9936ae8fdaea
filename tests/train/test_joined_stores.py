"""A crosscoder over two stores is the one over a store that holds both sites."""

from pathlib import Path

import numpy as np
import pytest
import torch

from harvest.joined import open_store
from harvest.store import Store
from tests.harvest.test_joined import Read, stores
from tests.training import job_of, spec_of
from train.anchors import load_anchors, make_anchors
from train.batches import Batches
from train.loop import train


class Both(Read):
    """The first sites of both models, in one store."""

    def __init__(self) -> None:
        super().__init__("c", 1.0)
        self.sites = {"one": Read("c", 1.0).sites["in"], "two": Read("c", 3.0).sites["in"]}
        self.widths = {"one": 6, "two": 6}


class First(Read):
    """A model of which only that site was harvested."""

    def __init__(self, scale: float) -> None:
        super().__init__("c", scale)
        self.sites, self.widths = {"in": self.sites["in"]}, {"in": 6}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Path]:
    folder = tmp_path_factory.mktemp("stores")
    base, chat, both = stores(folder, base=First(1.0), chat=First(3.0), both=Both())
    return [base, chat], both


def test_weights_are_the_same_to_the_byte(places: tuple[list[Path], Path], tmp_path: Path) -> None:
    pair, both = places
    changes = {"tokens": 6400, "batch": 64, "resample": {"every": 1000}}
    for place, reads, folder in ((pair, ["base/in", "chat/in"], "pair"), (both, ["one", "two"], "both")):
        train([job_of(spec_of(reads=reads, **changes), tmp_path / folder)], place)
    weights = [(tmp_path / folder / "output/sae_weights.safetensors").read_bytes() for folder in ("pair", "both")]
    assert weights[0] == weights[1]


def test_anchors_are_means_over_both(places: tuple[list[Path], Path], tmp_path: Path) -> None:
    pair, both = places
    anchors = {"source": "labels.language", "count": 2}
    make_anchors(spec_of(reads=["base/in", "chat/in"], anchors=anchors), open_store(pair), tmp_path / "pair")
    make_anchors(spec_of(reads=["one", "two"], anchors=anchors), Store(both), tmp_path / "both")
    found, expected = (load_anchors(tmp_path / name) for name in ("pair", "both"))
    assert np.array_equal(found.read, expected.read)
    assert np.array_equal(found.written, expected.written)


class Wide(First):
    """A model of many more dimensions: its chunks have fewer rows."""

    def __init__(self) -> None:
        super().__init__(1.0)
        random = torch.Generator().manual_seed(2)
        self.sites, self.widths = {"in": torch.randn(self.rows, 2**14, generator=random)}, {"in": 2**14}


def test_batches_of_stores_with_other_chunks(tmp_path: Path) -> None:
    narrow, wide = stores(tmp_path, narrow=First(1.0), wide=Wide())
    joined = open_store([narrow, wide])
    assert Store(narrow).layout.chunk_rows > Store(wide).layout.chunk_rows
    values = {f"{path.parent.name}/in": Store(path).read("in", 0, joined.rows) for path in (narrow, wide)}
    assert joined.layout == open_store([wide, narrow]).layout
    batches = Batches(joined, list(values), 70, seed=0, pool_bytes=2**22, memory=2**27)
    assert batches.pools > 1
    seen = []
    for batch in batches.iterate(0, joined.rows // 70):
        for site, expected in values.items():
            assert torch.equal(batch.sites[site], expected[batch.rows])
        seen += batch.rows.tolist()
    assert sorted(seen) == list(range(joined.rows))
