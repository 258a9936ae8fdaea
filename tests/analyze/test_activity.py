import json
import pathlib
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from analyze import encoded
from analyze.activity import density, measure
from analyze.encoded import active_places, batch_rows, block_rows
from analyze.examples import read_pack
from analyze.report.figures import of_dictionary
from harvest.errors import UserError
from harvest.store import Store
from tests.texts import make_dictionary, make_store, words
from train.dictionary import Codes, Dictionary
from train.files import save
from train.kernels import DensePattern


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(words(), tmp_path_factory.mktemp("words"))


def read(store: Store, sites: list[str]) -> torch.Tensor:
    return torch.cat([store.read(site, 0, store.rows) for site in sites], 1)


def figures_in_full(dictionary: Dictionary, x: torch.Tensor, y: torch.Tensor, widths: list[int]) -> dict[str, Any]:
    """The definitions, in float64, on dense latents."""
    with torch.no_grad():
        dense = dictionary.encode(x).dense()
        squares = (dictionary(x).double() - y.double()).square().sum(0)
    deviations = (y.double() - y.double().mean(0)).square().sum(0)
    parts = [slice(0, len(squares))]
    parts += [slice(sum(widths[:i]), sum(widths[: i + 1])) for i in range(len(widths))]
    return {
        "l0": float((dense > 0).double().sum(1).mean()),
        "dead_share": float((~(dense > 0).any(0)).double().mean()),
        "explained_variance": [1 - float(squares[part].sum() / deviations[part].sum()) for part in parts],
        "dense": dense.numpy(),
    }


@pytest.mark.parametrize(
    ("reads", "writes"), [(["in"], ["in"]), (["in"], ["out"]), (["in", "out"], ["in", "out"])], ids=str
)
def test_equals_a_dense_computation(
    store: Store, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, reads: list[str], writes: list[str]
) -> None:
    # Small batches and blocks, so that this store has many of both.
    monkeypatch.setattr(encoded, "BATCH_PLACES", 30 * 16)
    monkeypatch.setattr(encoded, "BLOCK_PLACES", 4 * 50)
    dictionary = make_dictionary(tmp_path / "dictionary", store, reads, writes)
    measure(tmp_path / "dictionary", store.path, tmp_path / "measured")
    summary = json.loads((tmp_path / "measured" / "summary.json").read_text())
    tensors = load_file(tmp_path / "measured" / "latents.safetensors")
    x, y, kept = read(store, reads), read(store, writes), int(store.rows * 0.8)
    widths = [store.widths[site] for site in writes]

    for part, rows in (("whole", slice(0, store.rows)), ("held_out", slice(kept, store.rows))):
        wanted = figures_in_full(dictionary, x[rows], y[rows], widths)
        found = summary[part]
        assert found["rows"] == len(x[rows])
        assert found["l0"] == pytest.approx(wanted["l0"], rel=1e-12)
        assert found["dead_share"] == pytest.approx(wanted["dead_share"], rel=1e-12)
        by_site = found["explained_variance_by_site"]
        assert list(by_site) == sorted(writes)
        assert [found["explained_variance"], *(by_site[site] for site in writes)] == pytest.approx(
            wanted["explained_variance"], rel=1e-6
        )

    dense = figures_in_full(dictionary, x, y, widths)["dense"]
    np.testing.assert_array_equal(tensors["firing"], (dense > 0).sum(0))
    np.testing.assert_array_equal(tensors["firing_held_out"], (dense[kept:] > 0).sum(0))
    np.testing.assert_allclose(tensors["max_activation"], dense.max(0), rtol=1e-6)
    means = [x[x > 0].mean() if (x > 0).any() else 0 for x in dense.T.astype(np.float64)]
    np.testing.assert_allclose(tensors["mean_activation"], means, rtol=1e-6)
    for latent, x_B in enumerate(dense.T):
        order = np.lexsort((np.arange(len(x_B)), -x_B))[: min(20, int((x_B > 0).sum()))]
        assert tensors["example_rows"][latent].tolist() == [*order.tolist(), *[-1] * (20 - len(order))]
        np.testing.assert_allclose(tensors["example_activations"][latent][: len(order)], x_B[order], rtol=1e-6)
        np.testing.assert_array_equal(
            tensors["histogram"][latent], np.histogram(x_B[x_B > 0], tensors["histogram_edges"])[0]
        )


def test_label_sums_are_those_of_the_rows(store: Store, tmp_path: pathlib.Path) -> None:
    dictionary = make_dictionary(tmp_path, store, ["in"], ["in"])
    measure(tmp_path, store.path, tmp_path)
    found, label_B = load_file(tmp_path / "labels.safetensors"), store.array("rows/labels/language")[:]
    dense = dictionary.encode(read(store, ["in"])).dense().detach().numpy()
    for label, name in enumerate(json.loads((tmp_path / "summary.json").read_text())["labels"]["language"]):
        assert store.labels["language"][label] == name
        of_label = dense[label_B == label]
        assert found["language/rows"][label] == len(of_label)
        np.testing.assert_array_equal(found["language/firing"][:, label], (of_label > 0).sum(0))
        np.testing.assert_allclose(found["language/sum"][:, label], of_label.sum(0), rtol=1e-5)


def test_dead_latents_are_counted_and_have_no_examples(store: Store, tmp_path: pathlib.Path) -> None:
    make_dictionary(tmp_path, store, ["in"], ["in"], dead=30)
    measure(tmp_path, store.path, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["whole"]["dead_share"] == 1
    assert summary["whole"]["l0"] == 0
    assert sum(summary["density"]["counts"]) == 0
    assert (load_file(tmp_path / "latents.safetensors")["example_rows"] == -1).all()
    assert read_pack(tmp_path / "examples/0.json.gz") == {"texts": [], "latents": {}}


@pytest.mark.parametrize("places", [4, 4 * 37, 10**6])
def test_blocks_of_any_size_give_the_same(
    store: Store, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, places: int
) -> None:
    make_dictionary(tmp_path, store, ["in"], ["out"])
    monkeypatch.setattr(encoded, "BATCH_PLACES", 30 * 4)  # the same products, however blocks are cut
    for name, of_block in (("one", 4 * 50), ("other", places)):
        monkeypatch.setattr(encoded, "BLOCK_PLACES", of_block)
        measure(tmp_path, store.path, tmp_path / name)
    one, other = (load_file(tmp_path / name / "latents.safetensors") for name in ("one", "other"))
    for tensor in one:
        np.testing.assert_allclose(one[tensor], other[tensor], rtol=1e-12, err_msg=tensor)
    for file in ("labels.safetensors", "examples/0.json.gz"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


def test_every_live_latent_is_in_the_density_once(store: Store, tmp_path: pathlib.Path) -> None:
    make_dictionary(tmp_path, store, ["in"], ["in"])
    measure(tmp_path, store.path, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    firing = load_file(tmp_path / "latents.safetensors")["firing"]
    assert sum(summary["density"]["counts"]) == (firing > 0).sum()
    assert len(summary["density"]["edges"]) == len(summary["density"]["counts"]) + 1
    rate, edges = firing.max() / store.rows, np.array(summary["density"]["edges"])
    assert summary["density"]["counts"][int(np.searchsorted(edges, rate, side="right")) - 1] > 0


@pytest.mark.parametrize("rows", [1, 2, 10, 999, 1_000, 10**6])
def test_density_reaches_from_one_row_to_all(rows: int) -> None:
    counts = density(np.array([0, 1, rows]), rows)["counts"]
    assert sum(counts) == 2
    assert counts[-1] >= 1


def test_without_a_holdout_there_are_no_figures_for_it(store: Store, tmp_path: pathlib.Path) -> None:
    make_dictionary(tmp_path, store, ["in"], ["in"], holdout=0)
    measure(tmp_path, store.path, tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["held_out"] is None


def test_the_same_measurement_gives_the_same_bytes(store: Store, tmp_path: pathlib.Path) -> None:
    make_dictionary(tmp_path / "dictionary", store, ["in"], ["in"])
    for name in ("one", "other"):
        measure(tmp_path / "dictionary", store.path, tmp_path / name)
    files = [file.relative_to(tmp_path / "one") for file in (tmp_path / "one").rglob("*") if file.is_file()]
    assert len(files) == 6
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes(), file


def test_another_store_is_refused(store: Store, tmp_path: pathlib.Path) -> None:
    other = make_store(words(1), tmp_path)
    make_dictionary(tmp_path / "dictionary", store, ["in"], ["in"])
    with pytest.raises(UserError, match="was trained on another one"):
        measure(tmp_path / "dictionary", other.path, tmp_path / "measured")
    assert not (tmp_path / "measured").exists()


def test_places_of_a_dense_pattern() -> None:
    values_BF = torch.tensor([[0.0, 2.0, 1.0], [0.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
    codes = Codes(DensePattern(values_BF > 0), values_BF, values_BF)
    counts_B, latents_N, values_N = active_places(codes)
    assert counts_B.tolist() == [2, 0, 1]
    assert latents_N.tolist() == [1, 2, 0]
    assert values_N.tolist() == [2, 1, 3]


def test_blocks_are_whole_batches_and_shrink_with_l0() -> None:
    assert block_rows(16_384, 32) % batch_rows(16_384) == 0
    assert block_rows(16_384, 32) * 32 <= encoded.BLOCK_PLACES
    assert block_rows(16_384, 4_000) == batch_rows(16_384)


def shares_of(store: Store, folder: pathlib.Path, decoder: torch.Tensor) -> tuple[np.ndarray, dict[str, Any]]:
    """Of a crosscoder whose sites are not in the order of their names."""
    dictionary = make_dictionary(folder, store, ["out", "in"], ["out", "in"])
    with torch.no_grad():
        dictionary.W_dec.copy_(decoder)
    cfg = json.loads((folder / "cfg.json").read_text())
    save(dictionary, folder, cfg["metadata"])
    measure(folder, store.path, folder)
    shares = load_file(folder / "latents.safetensors")["decoder_norm_share"]
    return shares, json.loads((folder / "summary.json").read_text())


def test_shares_of_decoder_norm_do_not_depend_on_a_sites_scale(store: Store, tmp_path: pathlib.Path) -> None:
    decoder = torch.randn(30, 10, generator=torch.Generator().manual_seed(3))
    decoder[5, :4] = 0
    shares, summary = shares_of(store, tmp_path / "as-it-is", decoder)
    spread = [float(read(store, [site]).double().var(0, correction=0).sum() ** 0.5) for site in ("out", "in")]
    norms = np.stack([decoder[:, :4].norm(dim=1) / spread[0], decoder[:, 4:].norm(dim=1) / spread[1]], 1)
    np.testing.assert_allclose(shares, norms / norms.sum(1, keepdims=True), rtol=1e-5)
    assert shares[5].tolist() == [0, 1]

    larger = words()
    larger.sites["in"] = 3 * larger.sites["in"]
    (tmp_path / "larger").mkdir()
    larger_store = make_store(larger, tmp_path / "larger")
    same, _ = shares_of(larger_store, tmp_path / "scaled", decoder * torch.tensor([1.0] * 4 + [3.0] * 6))
    np.testing.assert_allclose(same, shares, rtol=1e-5)

    drawn = next(figure for figure in of_dictionary(unlearned(summary)) if figure["id"] == "shares")
    live = load_file(tmp_path / "as-it-is" / "latents.safetensors")["firing"] > 0
    assert drawn["layout"]["xaxis"]["title"]["text"] == "share of decoder norm at in"
    assert [trace["name"] for trace in drawn["data"]] == ["in"]
    assert drawn["data"][0]["y"][:-1] == np.histogram(shares[live, 1], np.linspace(0, 1, 21))[0].tolist()


def unlearned(summary: dict[str, Any]) -> dict[str, Any]:
    """A dictionary of which nothing else is known."""
    return {"summary": summary, "curves": [], "cosines": None}


def test_of_three_sites_each_has_its_curve() -> None:
    shares = {"edges": [0, 0.5, 1], "sites": ["c", "a", "b"], "counts": [[1, 2], [2, 1], [3, 0]]}
    figures = of_dictionary(unlearned({"density": {"edges": [0.1, 1], "counts": [3]}, "decoder_norm_share": shares}))
    assert [(trace["name"], trace["y"]) for trace in figures[1]["data"]] == [
        ("c", [1, 2, 2]),
        ("a", [2, 1, 1]),
        ("b", [3, 0, 0]),
    ]
