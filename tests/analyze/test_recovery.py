import csv
import importlib.resources
import itertools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

from analyze.recovery import COLUMNS, measure_recovery, pattern_shares, recovery_row, write_recovery_csv
from analyze.theory.problem import activation_pattern, from_sets, topk_relu
from harvest.bench.config import BenchSpec
from harvest.bench.source import BenchSource
from harvest.errors import UserError
from harvest.files import write_json
from harvest.run import harvest
from harvest.store import Store
from train.dictionary import Dictionary
from train.files import save
from train.sparsity import make_sparsity

Measured = tuple[dict[str, Any], dict[str, np.ndarray]]


class RightAngles(BenchSource):
    """A bench whose features are orthonormal, so that W_enc = W_pᵀ reads every coefficient exactly."""

    def __init__(self, spec: BenchSpec) -> None:
        super().__init__(spec)
        for i, (site, w_DN) in enumerate(self.features_DN.items()):
            random_DN = np.random.default_rng(i).standard_normal(w_DN.shape)
            self.features_DN[site] = np.linalg.qr(random_DN)[0].astype(np.float32)
        tables = {f"truth/features/{site}": w_DN for site, w_DN in self.features_DN.items()}
        self.tables = {**self.tables, **tables}


class ByHand(RightAngles):
    """Two features whose coefficients are given."""

    COEFFICIENTS = np.array([[1, 0], [1, 0.5], [0, 2], [1, 0], [0, 0], [3, 1]], dtype=np.float32)

    def read_columns(self, start: int, stop: int) -> dict[str, np.ndarray]:
        return {"truth/coefficients": self.COEFFICIENTS[start:stop]}

    def read_sites(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        c_BN = self.COEFFICIENTS[start:stop]
        return {site: torch.from_numpy(c_BN @ w_DN.T) for site, w_DN in self.features_DN.items()}


def stored(source: BenchSource, folder: pathlib.Path) -> Store:
    harvest(source, folder / "activations.zarr", folder / "activations.manifest.json", {})
    return Store(folder / "activations.zarr")


def bench(**values: Any) -> BenchSpec:
    shared = {"features": 12, "sites": {"p": 16, "r": 20}, "rows": 1500, "sparsity": 0.8, "interference": 0.5}
    return BenchSpec.model_validate({**shared, **values})


def features(store: Store, sites: Sequence[str]) -> np.ndarray:
    return np.concatenate([np.asarray(store.array(f"truth/features/{site}")[:]) for site in sites]).astype(np.float64)


def saved(
    folder: pathlib.Path,
    store: Store,
    reads: list[str],
    writes: list[str],
    W_enc_FP: np.ndarray,
    W_dec_FR: np.ndarray,
    bias: float = 0.0,
    k: int | None = None,
    anchors: dict[str, Any] | None = None,
) -> pathlib.Path:
    """A TopK dictionary with these weights; all latents may be active unless `k` is given."""
    latents = len(W_enc_FP)
    sparsity = make_sparsity("topk", k or latents, latents)
    dictionary = Dictionary(W_enc_FP.shape[1], W_dec_FR.shape[1], sparsity, centered=reads == writes)
    with torch.no_grad():
        dictionary.W_enc.copy_(torch.from_numpy(W_enc_FP))
        dictionary.W_dec.copy_(torch.from_numpy(W_dec_FR))
        dictionary.b_enc.fill_(bias)
    facts = {"reads": reads, "writes": writes, "store": store.fingerprint, "spec": {"anchors": anchors}}
    save(dictionary, folder / "dictionary", facts)
    return folder / "dictionary"


def measured(dictionary: pathlib.Path, store: Store, anchored: list[int] | None = None) -> Measured:
    anchors = None
    output = dictionary.parent / "analyze"
    if anchored is not None:
        anchors = dictionary.parent / "anchors.safetensors"
        unused = torch.zeros(len(anchored), 1)
        tensors = {"read": unused, "written": unused.clone(), "features": torch.tensor(anchored)}
        save_file(tensors, anchors, {"names": "null"})
    measure_recovery(dictionary, store.path, anchors, output)
    return json.loads((output / "recovery.json").read_text()), load_file(output / "recovery.safetensors")


@pytest.fixture(scope="module")
def right_angles(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return stored(RightAngles(bench()), tmp_path_factory.mktemp("right_angles"))


SITES = [
    (["p"], ["p"]),
    (["p"], ["r"]),
    (["p", "r"], ["p", "r"]),
    (["p", "r"], ["r"]),
    (["p"], ["r", "p"]),
]


@pytest.mark.parametrize(("reads", "writes"), SITES)
@pytest.mark.parametrize("order", [range(12), np.random.default_rng(5).permutation(12)])
def test_a_perfect_dictionary_recovers_everything_in_any_order(
    right_angles: Store, tmp_path: pathlib.Path, reads: list[str], writes: list[str], order: Sequence[int]
) -> None:
    read_NP, written_NR = features(right_angles, reads).T[order], features(right_angles, writes).T[order]
    # Decoder rows of unit length; with several sites a latent is then as large as the stacked feature is long.
    W_enc_FP, W_dec_FR = read_NP / len(reads) * len(writes) ** 0.5, written_NR / len(writes) ** 0.5
    figures, arrays = measured(
        saved(tmp_path, right_angles, reads, writes, W_enc_FP, W_dec_FR, bias=-0.05), right_angles
    )
    ones = ("m_gt", "m_ip", "encoder_cosine", "decoder_cosine", "decoder_recovery", "mcc")
    assert {name: figures[name] for name in ones} == pytest.approx(dict.fromkeys(ones, 1.0), abs=1e-6)
    assert [figures[name] for name in ("precision", "recall", "firing_f1")] == [1, 1, 1]
    assert [figures[name] for name in ("dead", "dead_pattern", "polysemantic")] == [0, 0, 0]
    assert (figures["absorption"], figures["lost_child"]) == (None, None)
    assert [order[latent] for latent in arrays["matched_latent"]] == list(range(12))


def test_the_raw_score_does_not_depend_on_how_a_gain_is_shared(right_angles: Store, tmp_path: pathlib.Path) -> None:
    w_NP = features(right_angles, ["p"]).T
    gain_F1 = np.geomspace(0.1, 10, 12)[:, None]
    figures, arrays = measured(
        saved(tmp_path, right_angles, ["p"], ["p"], w_NP * gain_F1 * 0.5, w_NP / gain_F1), right_angles
    )
    np.testing.assert_allclose(arrays["raw"], 0.5, atol=1e-6)  # half of each feature comes through
    assert figures["m_gt"] == 0
    assert figures["encoder_cosine"] == pytest.approx(1)


def test_opposite_directions_are_no_recovery_but_the_papers_score_cannot_tell(
    right_angles: Store, tmp_path: pathlib.Path
) -> None:
    w_NP = features(right_angles, ["p"]).T
    figures, _ = measured(saved(tmp_path, right_angles, ["p"], ["p"], -w_NP, -w_NP), right_angles)
    assert figures["m_gt"] == 1
    assert figures["decoder_recovery"] == 0
    assert figures["mcc"] < 0.1


def brute_force(store: Store, W_enc_FP: np.ndarray, W_dec_FR: np.ndarray, k: int, kept: list[int]) -> dict[str, Any]:
    """Every figure by loops over rows, features and latents, for a dictionary from p to r without biases."""
    w_PN, w_RN = features(store, ["p"]), features(store, ["r"])
    c_BN = np.asarray(store.array("truth/coefficients")[:])
    parents = np.asarray(store.array("truth/parents")[:]).tolist()
    sigma = topk_relu(k)
    latents, count = len(W_enc_FP), w_PN.shape[1]

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    raw = [max(abs(W_enc_FP[j] @ w_PN[:, i]) for j in range(latents)) for i in range(count)]
    encoder = [max(cosine(W_enc_FP[j], w_PN[:, i]) for j in range(latents)) for i in range(count)]
    table = [[cosine(W_dec_FR[j], w_RN[:, i]) for j in range(latents)] for i in range(count)]
    matches = itertools.permutations(range(latents), count)
    match = max(matches, key=lambda chosen: sum(table[i][j] for i, j in enumerate(chosen)))
    active_BF = sigma(store.read("p", 0, store.rows).double().numpy() @ W_enc_FP.T) > 0
    on_BN = c_BN > 0
    precision, recall, f1, absorption, lost = [], [], [], [], []
    mean_N = [c_BN[on_BN[:, i], i].mean(dtype=np.float64) for i in range(count)]
    for i in kept:
        own_B = active_BF[:, match[i]]
        both = sum(bool(a and b) for a, b in zip(own_B, on_BN[:, i], strict=True))
        precision.append(both / max(1, own_B.sum()))
        recall.append(both / on_BN[:, i].sum())
        f1.append(2 * both / (own_B.sum() + on_BN[:, i].sum()))
        children = [child for child in range(count) if parents[child] == i]
        if children:
            absorbed = [
                not own_B[row] and any(on_BN[row, child] and active_BF[row, match[child]] for child in children)
                for row in np.flatnonzero(on_BN[:, i])
            ]
            absorption.append(np.mean(absorbed))
            together = [
                sigma(W_enc_FP @ (w_PN[:, i] * mean_N[i] + w_PN[:, child] * mean_N[child])) > 0 for child in children
            ]
            lost.append(
                any(on_F[match[child]] and not on_F[match[i]] for on_F, child in zip(together, children, strict=True))
            )
    pattern_FN = activation_pattern(W_enc_FP, w_PN * mean_N, sigma)
    sizes = [pattern_FN[j].sum() for j in range(latents) if pattern_FN[j, kept].any()]
    return {
        "m_ip": np.mean([raw[i] for i in kept]),
        "m_gt": np.mean([raw[i] > 0.95 for i in kept]),
        "encoder_cosine": np.mean([encoder[i] for i in kept]),
        "decoder_cosine": np.mean([max(table[i]) for i in kept]),
        "decoder_recovery": np.mean([max(table[i]) > 0.95 for i in kept]),
        "mcc": np.mean([table[i][match[i]] for i in kept]),
        "precision": np.mean(precision),
        "recall": np.mean(recall),
        "firing_f1": np.mean(f1),
        "absorption": np.mean(absorption),
        "lost_child": np.mean(lost),
        "dead": np.mean(~active_BF.any(0)),
        "dead_pattern": np.mean(~pattern_FN.any(1)),
        "polysemantic": np.mean([size >= 2 for size in sizes]),
        "raw curve": [np.mean([raw[i] > t / 100 for i in kept]) for t in range(101)],
        "decoder curve": [np.mean([max(table[i]) > t / 100 for i in kept]) for t in range(101)],
    }


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("anchored", [[], [0, 4]])
def test_every_figure_is_what_loops_find(tmp_path: pathlib.Path, seed: int, anchored: list[int]) -> None:
    spec = bench(features=6, sites={"p": 7, "r": 5}, rows=400, seed=seed, hierarchy={"parents": 2, "children": 2})
    store = stored(BenchSource(spec), tmp_path)
    assert len(store.finished) > 3
    rng = np.random.default_rng(seed)
    noise_FP, noise_FR = rng.normal(0, 0.25, (8, 7)), rng.normal(0, 0.25, (8, 5))
    order = rng.permutation(8)
    W_enc_FP = (np.vstack([features(store, ["p"]).T, np.zeros((2, 7))]) + noise_FP)[order].astype(np.float32)
    W_dec_FR = (np.vstack([features(store, ["r"]).T, np.zeros((2, 5))]) + noise_FR)[order]
    W_dec_FR = (W_dec_FR / np.linalg.norm(W_dec_FR, axis=1, keepdims=True)).astype(np.float32)
    figures, _ = measured(saved(tmp_path, store, ["p"], ["r"], W_enc_FP, W_dec_FR, k=3), store, anchored or None)
    figures["raw curve"], figures["decoder curve"] = figures["curves"]["raw"], figures["curves"]["decoder_cosine"]
    kept = [i for i in range(6) if i not in anchored]
    expected = brute_force(store, W_enc_FP.astype(np.float64), W_dec_FR.astype(np.float64), 3, kept)
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value, abs=1e-5), name
    assert 0 < figures["precision"] < 1
    assert 0 < figures["polysemantic"] <= 1
    assert (figures["features"], figures["anchored"], figures["latents"]) == (6, len(anchored), 8)


def test_anchors_are_left_out(right_angles: Store, tmp_path: pathlib.Path) -> None:
    w_NP = features(right_angles, ["p"]).T.copy()
    w_NP[[3, 7]] = np.linalg.qr(np.hstack([w_NP.T, np.random.default_rng(0).standard_normal((16, 4))]))[0].T[12:14]
    dictionary = saved(tmp_path, right_angles, ["p"], ["p"], w_NP, w_NP, bias=-0.05)
    everything, arrays = measured(dictionary, right_angles)
    assert everything["m_gt"] == everything["decoder_recovery"] == pytest.approx(10 / 12)
    assert everything["firing_f1"] == pytest.approx(10 / 12)
    rest, with_anchors = measured(dictionary, right_angles, [3, 7])
    for name in ("m_gt", "decoder_recovery", "mcc", "firing_f1", "encoder_cosine"):
        assert rest[name] == pytest.approx(1), name
    assert np.flatnonzero(with_anchors["anchored"]).tolist() == [3, 7]
    np.testing.assert_array_equal(arrays["raw"], with_anchors["raw"])


def test_precision_and_recall_by_hand(tmp_path: pathlib.Path) -> None:
    store = stored(ByHand(bench(features=2, rows=6)), tmp_path)
    w_NP = features(store, ["p"]).T
    # Latent 0 reads feature 1 and hears half of feature 0; latent 1 reads feature 0 too faintly to notice a 1.
    W_enc_FP = np.stack([w_NP[1] + 0.5 * w_NP[0], 0.3 * w_NP[0]])
    figures, arrays = measured(saved(tmp_path, store, ["p"], ["p"], W_enc_FP, w_NP[[1, 0]], bias=-0.4), store)
    assert arrays["matched_latent"].tolist() == [1, 0]
    # Feature 0 is on in rows 0, 1, 3 and 5 and its latent in 5; feature 1 in rows 1, 2 and 5, its latent in all but 4.
    np.testing.assert_allclose(arrays["precision"], [1 / 1, 3 / 5])
    np.testing.assert_allclose(arrays["recall"], [1 / 4, 3 / 3])
    np.testing.assert_allclose(arrays["firing_f1"], [2 / 5, 6 / 8])
    assert figures["firing_f1"] == pytest.approx((2 / 5 + 6 / 8) / 2)
    # Feature 0 is 1.5 on average when on: alone it switches both latents on, and at size 1 only the first.
    assert (figures["dead_pattern"], figures["polysemantic"]) == (0, 1 / 2)


def test_features_that_are_never_on_and_features_without_a_latent(tmp_path: pathlib.Path) -> None:
    class Silent(ByHand):
        COEFFICIENTS = np.array([[1, 0, 2], [2, 0, 1]] * 3, dtype=np.float32)

    store = stored(Silent(bench(features=3, rows=6)), tmp_path)
    w_NP = features(store, ["p"]).T
    figures, arrays = measured(saved(tmp_path, store, ["p"], ["p"], w_NP[[1, 0]], w_NP[[1, 0]], bias=-0.05), store)
    assert arrays["matched_latent"].tolist() == [1, 0, -1]
    assert arrays["matched_cosine"].tolist() == pytest.approx([1, 1, 0])
    np.testing.assert_array_equal(arrays["firing_f1"], [1, np.nan, 0])
    np.testing.assert_array_equal(arrays["precision"], [1, np.nan, 0])
    assert figures["firing_f1"] == pytest.approx(1 / 2)
    assert figures["mcc"] == pytest.approx(2 / 3)
    assert figures["dead"] == 1 / 2  # no row has feature 1
    assert figures["dead_pattern"] == 0  # but it would switch its latent on


def test_absorption_by_hand(tmp_path: pathlib.Path) -> None:
    spec = bench(features=8, hierarchy={"parents": 2, "children": 3}, rows=3000, magnitude_scale=0.01)
    store = stored(RightAngles(spec), tmp_path)
    w_NP = features(store, ["p"]).T
    assert np.asarray(store.array("truth/parents")[:]).tolist() == [-1, -1, 0, 0, 0, 1, 1, 1]
    W_enc_FP = w_NP.copy()
    W_enc_FP[0] -= 3 * w_NP[2]  # the first parent's latent is off where its first child is on
    figures, arrays = measured(saved(tmp_path, store, ["p"], ["p"], W_enc_FP, w_NP, bias=-0.05), store)
    on_BN = np.asarray(store.array("truth/coefficients")[:]) > 0
    share = on_BN[on_BN[:, 0], 2].mean()
    assert 0.2 < share < 0.6
    np.testing.assert_allclose(arrays["absorption"][:2], [share, 0])
    assert np.isnan(arrays["absorption"][2:]).all()
    assert figures["absorption"] == pytest.approx(share / 2)
    assert arrays["lost_child"][:2].tolist() == [1, 0]
    assert figures["lost_child"] == 1 / 2
    assert measured(tmp_path / "dictionary", store, [0])[0]["absorption"] == 0


def test_a_parent_that_was_never_learned_lost_no_child(tmp_path: pathlib.Path) -> None:
    store = stored(RightAngles(bench(features=3, hierarchy={"parents": 1, "children": 2})), tmp_path)
    w_NP = features(store, ["p"]).T
    W_enc_FP = w_NP * np.array([[0.0], [0.0], [1.0]])  # neither the parent's latent nor the first child's ever fires
    figures, _ = measured(saved(tmp_path, store, ["p"], ["p"], W_enc_FP, w_NP, bias=-0.05), store)
    on_BN = np.asarray(store.array("truth/coefficients")[:]) > 0
    assert figures["absorption"] == pytest.approx(on_BN[on_BN[:, 0], 2].mean())
    assert figures["lost_child"] == 1  # the second child's latent speaks in its place
    silent, _ = measured(saved(tmp_path, store, ["p"], ["p"], 0 * w_NP, w_NP, bias=-0.05), store)
    assert (silent["absorption"], silent["lost_child"]) == (0, 0)
    assert (silent["dead"], silent["dead_pattern"], silent["polysemantic"]) == (1, 1, None)


def test_a_parent_without_a_latent_lost_its_children(tmp_path: pathlib.Path) -> None:
    store = stored(RightAngles(bench(features=3, hierarchy={"parents": 1, "children": 2})), tmp_path)
    w_NP = features(store, ["p"]).T
    # The last latent is active with every child: it must not count as the one that the parent lacks.
    figures, arrays = measured(saved(tmp_path, store, ["p"], ["p"], w_NP[1:] + w_NP[0], w_NP[1:], bias=-0.05), store)
    assert arrays["matched_latent"].tolist() == [-1, 0, 1]
    assert (figures["absorption"], figures["lost_child"]) == (1, 1)


def test_a_latent_that_an_anchored_feature_switches_on_too_is_polysemantic() -> None:
    pattern_FN = from_sets({0}, {0, 1}, {1}, {2}, set(), of=3)
    assert pattern_shares(pattern_FN, np.array([False, False, False])) == {"dead_pattern": 1 / 5, "polysemantic": 1 / 4}
    assert pattern_shares(pattern_FN, np.array([True, False, True])) == {"dead_pattern": 1 / 5, "polysemantic": 1 / 2}


def test_mistakes_are_one_clear_line(right_angles: Store, tmp_path: pathlib.Path) -> None:
    w_NP = features(right_angles, ["p"]).T
    dictionary = saved(tmp_path, right_angles, ["p"], ["p"], w_NP, w_NP, anchors={"source": "truth", "count": 2})
    other = stored(RightAngles(bench(seed=1)), tmp_path / "other")
    for store, anchors, message in [
        (right_angles, None, "features were its anchors; give the anchors' file"),
        (right_angles, list(range(12)), "every feature is one; none is left"),
        (other, [0], "was trained on another one"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            measured(dictionary, store, anchors)
        assert "\n" not in str(caught.value)


def test_a_store_without_truth_is_a_mistake(tmp_path: pathlib.Path) -> None:
    class Plain(BenchSource):
        def __init__(self, spec: BenchSpec) -> None:
            super().__init__(spec)
            self.columns, self.tables = {}, {}

        def read_columns(self, start: int, stop: int) -> dict[str, np.ndarray]:
            return {}

    store = stored(Plain(bench()), tmp_path)
    dictionary = saved(tmp_path, store, ["p"], ["p"], np.eye(16), np.eye(16))
    with pytest.raises(UserError, match=r"activations.zarr: has no ground truth"):
        measured(dictionary, store)


def test_the_table_has_a_line_a_dictionary(right_angles: Store, tmp_path: pathlib.Path) -> None:
    w_NP = features(right_angles, ["p"]).T
    dictionary = saved(tmp_path, right_angles, ["p"], ["p"], w_NP, w_NP, bias=-0.05)
    measured(dictionary, right_angles)
    spec = {"sparsity": {"topk": {"l0": 3.0}}, "seed": 7, "matryoshka": None, "anchors": None}
    whole, held_out = {"explained_variance": 0.5, "l0": 1.0}, {"explained_variance": 0.9876543, "l0": 2.5}
    write_json(dictionary / "training.json", {"kind": "sae", "spec": spec})
    write_json(tmp_path / "analyze" / "summary.json", {"whole": whole, "held_out": held_out})
    rows = [recovery_row("plain", dictionary, tmp_path / "analyze")]
    spec |= {"matryoshka": {"prefixes": [0.5, 1]}, "anchors": {"source": "truth"}}
    write_json(dictionary / "training.json", {"kind": "sae", "spec": spec})
    write_json(tmp_path / "analyze" / "summary.json", {"whole": whole, "held_out": None})
    rows.append(recovery_row("nested", dictionary, tmp_path / "analyze"))
    write_recovery_csv(rows, tmp_path / "results" / "recovery.csv")
    header, *lines = (tmp_path / "results" / "recovery.csv").read_text().splitlines()
    assert header == (
        "dictionary,kind,method,anchored,seed,m_gt,m_ip,encoder_cosine,decoder_cosine,mcc,firing_f1,"
        "explained_variance,l0,target_l0,dead,polysemantic,absorption"
    )
    assert lines == [
        "plain,sae,topk,no,7,1,1,1,1,1,1,0.987654,2.5,3,0,0,",
        "nested,sae,matryoshka-topk,yes,7,1,1,1,1,1,1,0.5,1,3,0,0,",
    ]
    assert tuple(rows[0]) == COLUMNS


def test_the_papers_figures_come_with_the_package() -> None:
    text = (importlib.resources.files("analyze") / "data" / "paper_tables.csv").read_text()
    lines = list(csv.DictReader(text.splitlines()))
    assert {line["table"] for line in lines} == {"1", "2", "4", "5", "6", "7"}
    assert len({tuple(line.values())[:4] for line in lines}) == len(lines)  # no setting twice
    assert all(0 <= float(line[name]) <= 1 for line in lines for name in ("gt_recovery", "max_inner_product"))
    table_1 = [line for line in lines if line["table"] == "1"]
    assert len(table_1) == 14
    assert [line["gt_recovery"] for line in table_1 if line["method"] == "batchtopk"] == ["0.8480", "0.8938"]
