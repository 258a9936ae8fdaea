import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from harvest.bench.config import BenchSpec
from harvest.bench.source import BenchSource
from harvest.errors import UserError
from harvest.run import harvest
from harvest.source import Column, Source
from harvest.store import Store
from train.anchors import Anchors, load_anchors, make_anchors
from train.config import DictionarySpec

LABELS = ["cat", "dog", "cow", "none of these", "everything"]
HOLDOUT = 0.25


@dataclass
class Given:
    """Rows and labels as they are given."""

    sites: dict[str, torch.Tensor]
    labels: dict[str, np.ndarray]
    tables: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rows = len(next(iter(self.sites.values())))
        self.widths: Mapping[str, int] = {site: x_BD.shape[1] for site, x_BD in self.sites.items()}
        self.dtype = str(next(iter(self.sites.values())).dtype).removeprefix("torch.")
        self.facts: Mapping[str, Any] = {"sites": self.widths, "labels": sorted(self.labels)}
        self.columns: Mapping[str, Column] = {
            f"rows/labels/{name}": Column("int32", attributes={"names": LABELS}) for name in self.labels
        }

    def read_columns(self, start: int, stop: int) -> dict[str, np.ndarray]:
        return {f"rows/labels/{name}": labels_B[start:stop] for name, labels_B in self.labels.items()}

    def read_sites(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        return {site: x_BD[start:stop].clone() for site, x_BD in self.sites.items()}


def stored(source: Source, folder: pathlib.Path) -> Store:
    harvest(source, folder / "activations.zarr", folder / "activations.manifest.json", {"nickname": "p"})
    return Store(folder / "activations.zarr")


def spec(anchors: dict[str, Any], **values: Any) -> DictionarySpec:
    shared = {"reads": ["p"], "latents": 64, "sparsity": {"topk": {"l0": 4}}, "tokens": 1000, "holdout": HOLDOUT}
    return DictionarySpec.model_validate({**shared, **values, "anchors": anchors})


def made(anchors: dict[str, Any], store: Store, folder: pathlib.Path, **values: Any) -> Anchors:
    make_anchors(spec(anchors, **values), store, folder / "anchors" / "one.safetensors")
    return load_anchors(folder / "anchors" / "one.safetensors")


def unit(x_KD: np.ndarray) -> np.ndarray:
    found: np.ndarray = x_KD / np.linalg.norm(x_KD, axis=1, keepdims=True)
    return found


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Store:
    values = {"features": 40, "sites": {"p": 32, "r": 24}, "rows": 2000, "sparsity": 0.9, "interference": 0.4}
    return stored(BenchSource(BenchSpec.model_validate(values)), tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Rows far from the origin; `animal` has rows without a label and a label that only held-out rows have."""
    rng = np.random.default_rng(0)
    sites = {"p": torch.from_numpy(rng.normal(30, 1, (1000, 12))), "r": torch.from_numpy(rng.normal(-9, 5, (1000, 5)))}
    animal_B = rng.integers(-1, 3, 1000).astype(np.int32)
    animal_B[760:800] = 3
    labels = {"animal": animal_B, "other": np.full(1000, 4, np.int32)}
    return stored(
        Given({site: x_BD.bfloat16() for site, x_BD in sites.items()}, labels), tmp_path_factory.mktemp("labelled")
    )


def features(store: Store, site: str) -> np.ndarray:
    return np.asarray(store.array(f"truth/features/{site}")[:])


def test_truth_is_a_random_subset_of_columns(bench: Store, tmp_path: pathlib.Path) -> None:
    anchors = made({"source": "truth", "count": 7}, bench, tmp_path, reads=["nickname"], writes=["r"])
    assert anchors.features is not None
    chosen = anchors.features.numpy()
    assert len(set(chosen.tolist())) == 7
    assert anchors.read.dtype == anchors.written.dtype == torch.float32
    np.testing.assert_allclose(anchors.read.numpy(), features(bench, "p")[:, chosen].T, atol=1e-6)
    np.testing.assert_allclose(anchors.written.numpy(), features(bench, "r")[:, chosen].T, atol=1e-6)
    assert anchors.names is None
    again = made({"source": "truth", "count": 7}, bench, tmp_path)
    other = made({"source": "truth", "count": 7}, bench, tmp_path, seed=1)
    assert again.features is not None
    assert other.features is not None
    assert again.features.tolist() == chosen.tolist() != other.features.tolist()


def test_several_sites_are_concatenated_in_the_order_of_the_config_and_have_unit_length(
    bench: Store, tmp_path: pathlib.Path
) -> None:
    anchors = made({"source": "truth", "count": 40}, bench, tmp_path, reads=["r", "p"])
    expected_ND = np.concatenate([features(bench, "r"), features(bench, "p")]).T / 2**0.5
    np.testing.assert_allclose(anchors.read.numpy(), expected_ND, atol=1e-6)
    np.testing.assert_array_equal(anchors.read.numpy(), anchors.written.numpy())


def expected_labels(store: Store, site: str, names: list[str]) -> np.ndarray:
    """Eq. 23 and 24 by hand, over the rows that training sees."""
    x_BD = store.read(site, 0, 750).double().numpy()
    labels_B = np.asarray(store.array("rows/labels/animal")[:750])
    return np.stack([x_BD[labels_B == LABELS.index(name)].mean(0) - x_BD.mean(0) for name in names])


def test_labels_are_centred_means_of_the_rows_that_training_sees(labelled: Store, tmp_path: pathlib.Path) -> None:
    assert len(labelled.finished) > 3  # several blocks, one of which the holdout cuts
    assert 750 % labelled.layout.shard_rows != 0
    named = {"source": "labels.animal", "count": 2, "names": ["cow", "cat"]}
    anchors = made(named, labelled, tmp_path, reads=["p"], writes=["r"])
    assert (anchors.names, anchors.features) == (["cow", "cat"], None)
    np.testing.assert_allclose(anchors.read, unit(expected_labels(labelled, "p", ["cow", "cat"])), atol=1e-6)
    np.testing.assert_allclose(anchors.written, unit(expected_labels(labelled, "r", ["cow", "cat"])), atol=1e-6)
    both = made(named, labelled, tmp_path, reads=["r", "p"])
    joined = np.hstack([expected_labels(labelled, site, ["cow", "cat"]) for site in "rp"])
    np.testing.assert_allclose(both.read, unit(joined), atol=1e-6)
    np.testing.assert_array_equal(both.read, both.written)


def test_labels_are_drawn_by_seed_from_those_that_training_sees(labelled: Store, tmp_path: pathlib.Path) -> None:
    drawn = [
        made({"source": "labels.animal", "count": 2}, labelled, tmp_path, seed=seed).names for seed in [*range(20), 0]
    ]
    assert drawn[0] == drawn[-1]
    assert {name for names in drawn for name in names or []} == {"cat", "dog", "cow"}
    everyone = made({"source": "labels.animal", "count": 3}, labelled, tmp_path)
    np.testing.assert_allclose(everyone.read, unit(expected_labels(labelled, "p", everyone.names or [])), atol=1e-6)


def blobs(folder: pathlib.Path) -> tuple[Store, np.ndarray, np.ndarray]:
    """Six directions in site p, with directions of their own in r, and a site of loud noise; far from the origin."""
    rng = np.random.default_rng(3)
    centre_KP = np.linalg.qr(rng.standard_normal((16, 6)))[0].T
    centre_KR = np.linalg.qr(rng.standard_normal((8, 6)))[0].T
    which_B = rng.integers(0, 6, 3000)
    length_B1 = rng.uniform(1, 3, (3000, 1))
    sites = {
        "p": 5 + length_B1 * centre_KP[which_B] + rng.normal(0, 0.03, (3000, 16)),
        "r": -2 + length_B1 * centre_KR[which_B] + rng.normal(0, 0.03, (3000, 8)),
        "noise": rng.normal(0, 100, (3000, 4)),
    }
    sites["loud r"] = 100 * sites["r"]
    tensors = {site: torch.from_numpy(x_BD).float() for site, x_BD in sites.items()}
    store = stored(Given(tensors, {}), folder)
    # Centred rows point along what tells a cluster from the mean of all.
    share_K = np.bincount(which_B) / 3000
    return store, unit(centre_KP - share_K @ centre_KP), unit(centre_KR - share_K @ centre_KR)


def test_clusters_find_directions_and_what_is_written_with_them(tmp_path: pathlib.Path) -> None:
    store, centre_KP, centre_KR = blobs(tmp_path)
    anchors = made({"source": "clusters", "count": 6}, store, tmp_path, reads=["p"], writes=["r"])
    np.testing.assert_allclose(np.linalg.norm(anchors.read, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(anchors.written, axis=1), 1, atol=1e-6)
    cosine_KK = anchors.read.numpy() @ centre_KP.T
    match_K = cosine_KK.argmax(1)
    assert sorted(match_K) == list(range(6))
    assert cosine_KK.max(1).min() > 0.99
    assert (anchors.written.numpy() * centre_KR[match_K]).sum(1).min() > 0.99
    again = made({"source": "clusters", "count": 6}, store, tmp_path, reads=["p"], writes=["r"])
    assert torch.equal(again.read, anchors.read)
    assert torch.equal(again.written, anchors.written)
    assert (anchors.features, anchors.names) == (None, None)


def test_a_loud_site_does_not_decide_the_clusters(tmp_path: pathlib.Path) -> None:
    store, centre_KP, _ = blobs(tmp_path)
    both = made({"source": "clusters", "count": 6}, store, tmp_path, reads=["noise", "p"], writes=["p"])
    assert sorted((both.written.numpy() @ centre_KP.T).argmax(1)) == list(range(6))
    assert (both.written.numpy() @ centre_KP.T).max(1).min() > 0.95


def test_clusters_of_several_sites_are_in_the_models_own_units(tmp_path: pathlib.Path) -> None:
    store, centre_KP, centre_KR = blobs(tmp_path)
    both = made({"source": "clusters", "count": 6}, store, tmp_path, reads=["p", "loud r"])
    for read_D, written_D in zip(both.read.numpy(), both.written.numpy(), strict=True):
        cluster = int((centre_KP @ read_D[:16]).argmax())
        assert np.linalg.norm(read_D[:16]) < 0.02  # a hundredth, as the rows themselves
        assert read_D @ written_D > 0.99  # the one a mean of unit rows, the other of rows
        assert centre_KR[cluster] @ read_D[16:] > 0.99


@pytest.mark.parametrize(
    ("anchors", "message"),
    [
        ({"source": "truth", "count": 65}, r"anchors.count: 65: more anchors than latents 64"),
        ({"source": "truth", "count": 41}, r"anchors.count: 41: more anchors than the 40 features"),
        ({"source": "labels.animal", "count": 1}, r"anchors.source: labels.animal: .* it has no labels at all"),
        ({"source": "truth", "count": 1, "names": ["cat"]}, r"anchors.names: only for the source labels.<set>"),
    ],
)
def test_mistakes_on_a_bench_store(bench: Store, tmp_path: pathlib.Path, anchors: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        made(anchors, bench, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("anchors", "message"),
    [
        ({"source": "truth", "count": 1}, r"anchors.source: truth: .*activations.zarr has no ground truth"),
        ({"source": "labels.plant", "count": 1}, r"anchors.source: labels.plant: .* it has animal, other"),
        ({"source": "labels.animal", "count": 4}, r"anchors.count: 4: more anchors than labels; 3 of the 5 .*"),
        ({"source": "labels.other", "count": 1}, r"anchors.count: 1: more anchors than labels; 0 of the 5 .*"),
        (
            {"source": "labels.animal", "count": 1, "names": ["horse"]},
            r"anchors.names: horse: no such label in labels.animal; there are cat, dog, cow",
        ),
        (
            {"source": "labels.animal", "count": 1, "names": ["none of these"]},
            r"anchors.names: none of these: none or all of the rows",
        ),
        ({"source": "labels.animal", "count": 3, "names": ["cat"]}, r"anchors.count: 3: names must be that many"),
        ({"source": "labels.animal", "count": 2, "names": ["cat", "cat"]}, r"anchors.count: 2: .* different labels"),
        ({"source": "clusters", "count": 751}, r"anchors.count: 751: more anchors than the 750 rows"),
    ],
)
def test_mistakes_on_a_labelled_store(
    labelled: Store, tmp_path: pathlib.Path, anchors: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        made(anchors, labelled, tmp_path, latents=1000)
    assert "\n" not in str(caught.value)


def test_more_clusters_than_different_rows(tmp_path: pathlib.Path) -> None:
    two = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(50, 1)
    with pytest.raises(UserError, match=r"anchors.count: 5: 3 clusters stayed empty"):
        made({"source": "clusters", "count": 5}, stored(Given({"p": two}, {}), tmp_path), tmp_path)


def test_a_file_that_holds_no_anchors_is_a_mistake(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"missing.safetensors: cannot be read"):
        load_anchors(tmp_path / "missing.safetensors")
    (tmp_path / "text.safetensors").write_text("these are no tensors")
    with pytest.raises(UserError, match=r"text.safetensors: cannot be read"):
        load_anchors(tmp_path / "text.safetensors")
    save_file({"weight": torch.zeros(2)}, tmp_path / "weight.safetensors")
    with pytest.raises(UserError, match=r"weight.safetensors: cannot be read"):
        load_anchors(tmp_path / "weight.safetensors")
