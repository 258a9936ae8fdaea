import json
import pathlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from analyze import by_latent, encoded, similarity
from analyze.activity import measure
from analyze.encoded import Places
from analyze.labelled import Judged, absorbed_rows, auc
from analyze.monosemanticity import Embedding
from harvest.errors import UserError
from harvest.files import read_json
from harvest.source import Column
from harvest.store import Store
from tests.texts import Texts, make_dictionary, make_store, words
from train.anchors import make_anchors
from train.config import DictionarySpec
from train.dictionary import Dictionary
from train.files import save

LETTERS = ["a", "b", "c", "never"]


class Labelled(Texts):
    """A second label set, of tokens, which most rows lack and one of whose labels no row has. One embedding is 0."""

    def __init__(self) -> None:
        texts = words()
        super().__init__(texts.documents, ["nynorsk", "deutsch"] * 20)
        self.letter = np.random.default_rng(0).integers(-4, 3, self.rows).clip(-1).astype(np.int32)
        self.columns: Mapping[str, Column] = {
            **self.columns,
            "rows/labels/letter": Column("int32", None, {"names": LETTERS}),
        }
        self.facts = {"rows": self.rows, "corpus": {"letters": True}}
        self.sites["out"][7] = 0

    def read_columns(self, start: int, stop: int) -> dict[str, np.ndarray]:
        return super().read_columns(start, stop) | {"rows/labels/letter": self.letter[start:stop]}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("labelled") / "letters"
    folder.mkdir()
    return make_store(Labelled(), folder)


@pytest.fixture(autouse=True)
def many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded, "BATCH_PLACES", 30 * 16)
    monkeypatch.setattr(encoded, "BLOCK_PLACES", 4 * 50)
    monkeypatch.setattr(by_latent, "GROUP_PLACES", 300)
    monkeypatch.setattr(similarity, "SUM_PLACES", 4 * 7)


def make(folder: pathlib.Path, store: Store, always: int = 4) -> Dictionary:
    """Latents 0 to 2 are dead; one is active in every row."""
    dictionary = make_dictionary(folder, store, ["in"], ["in"])
    with torch.no_grad():
        dictionary.b_enc[always] = 40
        dictionary.W_enc[always] *= 2
    save(dictionary, folder, json.loads((folder / "cfg.json").read_text())["metadata"])
    return dictionary.eval()


def measured(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    return read_json(folder / "monosemanticity.json", "test"), load_file(folder / "monosemanticity.safetensors")


def latents_of(dictionary: Dictionary, store: Store) -> np.ndarray:
    with torch.no_grad():
        return dictionary.encode(store.read("in", 0, store.rows)).dense().double().numpy()


def auc_in_full(value_B: np.ndarray, has_it_B: np.ndarray) -> float:
    ours, others = value_B[has_it_B][:, None], value_B[~has_it_B][None]
    return float(((ours > others) + 0.5 * (ours == others)).mean())


def test_figures_of_labels_equal_a_brute_force_version(store: Store, tmp_path: pathlib.Path) -> None:
    dense_BF = latents_of(make(tmp_path, store), store)
    measure(tmp_path, store.path, tmp_path / "measured")
    found, arrays = measured(tmp_path / "measured")
    live = np.flatnonzero((dense_BF > 0).any(0))
    assert len(live) > 10
    assert set(found["sets"]) == {"language", "letter"}
    for name, of_set in found["sets"].items():
        label_B, names = store.array(f"rows/labels/{name}")[:], store.labels[name]
        assert of_set["live"] == len(live)
        f1_FL = np.zeros((30, len(names)))
        for latent in range(30):
            active_B = dense_BF[:, latent] > 0
            if not active_B.any():
                assert arrays[f"{name}/best_label"][latent] == -1
                assert all(np.isnan(arrays[f"{name}/{figure}"][latent]) for figure in of_set["mean"])
                continue
            for label in range(len(names)):
                both, either = (active_B & (label_B == label)).sum(), active_B.sum() + (label_B == label).sum()
                f1_FL[latent, label] = 2 * both / either
            best = int(f1_FL[latent].argmax())
            assert arrays[f"{name}/best_label"][latent] == best
            has_it_B = label_B == best
            both = (active_B & has_it_B).sum()
            shares = np.array([dense_BF[label_B == label, latent].sum() for label in range(-1, len(names))])
            shares = shares[shares > 0] / shares.sum()
            top = np.lexsort((np.arange(store.rows), -dense_BF[:, latent].astype(np.float32)))[:20]
            wanted = {
                "f1": f1_FL[latent, best],
                "precision": both / active_B.sum(),
                "recall": both / has_it_B.sum(),
                "auc": auc_in_full(dense_BF[:, latent].astype(np.float32), has_it_B),
                "entropy": -(shares * np.log2(shares)).sum(),
                "purity": (label_B[top[active_B[top]]] == best).mean(),
            }
            for figure, value in wanted.items():
                assert arrays[f"{name}/{figure}"][latent] == pytest.approx(value, rel=1e-5, abs=1e-7), (latent, figure)
        for figure, mean in of_set["mean"].items():
            values = arrays[f"{name}/{figure}"][live]
            assert mean == pytest.approx(float(values.mean()), rel=1e-5)
            assert of_set["median"][figure] == pytest.approx(float(np.median(values)), rel=1e-5)
            assert sum(of_set["distributions"][figure]["counts"]) == len(live)
        best_F = np.where((dense_BF > 0).any(0), f1_FL.argmax(1), -1)
        for label, line in enumerate(of_set["labels"]):
            has_it_B = label_B == label
            assert (line["label"], line["rows"]) == (names[label], has_it_B.sum())
            if not has_it_B.any():
                assert line["best_latent"] is line["f1"] is line["absorption"] is line["inner_product"] is None
                assert line["sharing"] == 0
                continue
            best = int(f1_FL[:, label].argmax())
            active_B = dense_BF[:, best] > 0
            shares = (best_F == label) & (f1_FL[:, label] >= f1_FL[best, label] / 2)
            special = (
                (best_F == label)
                & ~shares
                & (((dense_BF > 0) & has_it_B[:, None]).sum(0) >= 0.5 * (dense_BF > 0).sum(0))
            )
            absorbed = has_it_B & ~(dense_BF[:, shares] > 0).any(1) & (dense_BF[:, special] > 0).any(1)
            assert (line["best_latent"], line["sharing"]) == (best, shares.sum())
            assert line["f1"] == pytest.approx(f1_FL[best, label])
            assert line["precision"] == pytest.approx((active_B & has_it_B).sum() / active_B.sum())
            assert line["recall"] == pytest.approx((active_B & has_it_B).sum() / has_it_B.sum())
            assert line["auc"] == pytest.approx(auc_in_full(dense_BF[:, best].astype(np.float32), has_it_B), rel=1e-9)
            assert line["absorption"] == (pytest.approx(absorbed.sum() / has_it_B.sum()) if shares.any() else None)


def test_token_purity_is_the_share_of_the_most_common_token(store: Store, tmp_path: pathlib.Path) -> None:
    dense_BF = latents_of(make(tmp_path, store), store)
    measure(tmp_path, store.path, tmp_path / "measured")
    found, arrays = measured(tmp_path / "measured")
    token_B = store.array("rows/token")[:]
    for latent in range(30):
        tokens = token_B[dense_BF[:, latent] > 0].tolist()
        pure = Counter(tokens).most_common(1)[0][1] / len(tokens) if tokens else np.nan
        assert arrays["token_purity"][latent] == pytest.approx(pure, nan_ok=True)
    assert found["token_purity"]["mean"] == pytest.approx(float(np.nanmean(arrays["token_purity"])))
    assert sum(found["distributions"]["token_purity"]["counts"]) == (dense_BF > 0).any(0).sum()


def score_in_full(dense_BF: np.ndarray, embedding_BE: np.ndarray) -> np.ndarray:
    """As Pach et al. 2025 define it, pair by pair; rows without a direction are left out."""
    kept_B = np.linalg.norm(embedding_BE, axis=1) > 0
    a_BF, e_BE = dense_BF[kept_B], embedding_BE[kept_B]
    e_BE = e_BE / np.linalg.norm(e_BE, axis=1, keepdims=True)
    similarity_BB = e_BE @ e_BE.T
    found = []
    for a_B in a_BF.T:
        scaled_B = (a_B - a_B.min()) / (a_B.max() - a_B.min()) if a_B.max() > a_B.min() else np.zeros(len(a_B))
        weight_BB = np.triu(np.outer(scaled_B, scaled_B), 1)
        found.append((weight_BB * similarity_BB).sum() / weight_BB.sum() if weight_BB.sum() > 0 else np.nan)
    return np.array(found)


def test_the_score_equals_that_of_all_pairs(store: Store, tmp_path: pathlib.Path) -> None:
    dense_BF = latents_of(make(tmp_path, store), store)
    assert (dense_BF[:, 4] > 0).all()
    measure(tmp_path, store.path, tmp_path / "measured", embedding=Embedding("out"))
    found, arrays = measured(tmp_path / "measured")
    wanted = score_in_full(dense_BF, store.read("out", 0, store.rows).double().numpy())
    np.testing.assert_allclose(arrays["score"], wanted, atol=2e-5)
    assert (~np.isnan(wanted)).sum() > 10
    assert found["score"]["embedding"] == "out"
    assert found["score"]["mean"] == pytest.approx(float(np.nanmean(wanted)), abs=2e-5)


def test_the_embedding_may_be_of_another_store_with_the_same_rows(store: Store, tmp_path: pathlib.Path) -> None:
    make(tmp_path, store)
    source = Labelled()
    source.sites["in"] = source.sites["in"] * torch.linspace(0, 2, 6) - 1
    other = make_store(source, _folder(tmp_path / "dino"))
    measure(tmp_path, store.path, tmp_path / "measured", embedding=Embedding("in", other.path))
    found, arrays = measured(tmp_path / "measured")
    dictionary = make(tmp_path, store)
    wanted = score_in_full(latents_of(dictionary, store), other.read("in", 0, store.rows).double().numpy())
    np.testing.assert_allclose(arrays["score"], wanted, atol=2e-5)
    assert found["score"]["embedding"] == "dino/in"


def _folder(path: pathlib.Path) -> pathlib.Path:
    path.mkdir()
    return path


def test_an_embedding_that_is_not_independent_or_of_other_rows_is_refused(store: Store, tmp_path: pathlib.Path) -> None:
    make(tmp_path, store)
    shorter = make_store(words(3), _folder(tmp_path / "shorter"))
    for embedding, message in (
        (Embedding("in"), "--embedding: in: the dictionary reads it"),
        (Embedding("nowhere"), "nowhere: no such site"),
        (Embedding("in", shorter.path), "rows; both must be harvested from the same corpus"),
    ):
        with pytest.raises(UserError, match=message):
            measure(tmp_path, store.path, tmp_path / "measured", embedding=embedding)
        assert not (tmp_path / "measured").exists()


def test_class_means_leave_the_anchors_out(store: Store, tmp_path: pathlib.Path) -> None:
    dictionary = make(tmp_path, store)
    metadata = json.loads((tmp_path / "cfg.json").read_text())["metadata"]
    anchors = {"source": "labels.letter", "count": 1, "names": ["b"]}
    spec = {"reads": ["in"], "latents": 30, "sparsity": {"topk": {"l0": 4}}, "tokens": 100, "anchors": anchors}
    make_anchors(DictionarySpec.model_validate(spec), store, tmp_path / "anchors.safetensors")
    save(dictionary, tmp_path, metadata | {"spec": metadata["spec"] | {"anchors": anchors}})
    with pytest.raises(UserError, match=r"--anchors: means of labels\.letter were anchors"):
        measure(tmp_path, store.path, tmp_path / "measured")
    measure(tmp_path, store.path, tmp_path / "measured", anchors=tmp_path / "anchors.safetensors")
    found, _ = measured(tmp_path / "measured")
    x_BD, label_B = store.read("in", 0, store.rows).double().numpy(), store.array("rows/labels/letter")[:]
    W_enc, W_dec = (W.detach().double().numpy() for W in (dictionary.W_enc, dictionary.W_dec))
    raw, decoder = [], []
    for label, line in enumerate(found["sets"]["letter"]["labels"][:3]):
        mean = x_BD[label_B == label].mean(0) - x_BD.mean(0)
        mean /= np.linalg.norm(mean)
        raw.append((np.abs(W_enc @ mean) * np.linalg.norm(W_dec, axis=1)).max())
        decoder.append((W_dec @ mean / np.linalg.norm(W_dec, axis=1)).max())
        assert line["inner_product"] == pytest.approx(raw[-1], rel=1e-5)
        assert line["decoder_cosine"] == pytest.approx(decoder[-1], rel=1e-5)
        assert line["anchored"] == (line["label"] == "b")
    means = found["sets"]["letter"]["class_means"]
    assert (means["classes"], means["anchored"]) == (2, 1)
    assert means["m_ip"] == pytest.approx((raw[0] + raw[2]) / 2, rel=1e-5)
    assert means["m_gt"] == np.mean([raw[0] > 0.95, raw[2] > 0.95])
    assert means["decoder_cosine"] == pytest.approx((decoder[0] + decoder[2]) / 2, rel=1e-5)
    assert found["sets"]["language"]["class_means"]["anchored"] == 0


@given(st.data())
def test_auc_is_the_share_of_pairs(data: st.DataObject) -> None:
    values = data.draw(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=40))
    value_B, has_it_B = (np.array(column) for column in zip(*values, strict=True))
    found = auc(value_B[value_B > 0], has_it_B[value_B > 0], int(has_it_B.sum()), int((~has_it_B).sum()))
    if has_it_B.all() or not has_it_B.any():
        assert np.isnan(found)
    else:
        assert found == pytest.approx(auc_in_full(value_B, has_it_B))


def test_a_special_latent_absorbs_the_rows_it_took() -> None:
    # Latent 0 is on in 6 of 8 rows of the label, latent 1 in the two others and nowhere else.
    label_B = np.array([0] * 8 + [1] * 4)
    latents = [0] * 6 + [1] * 2
    places = Places(0, np.array([*range(9), 8, 8, 8, 8]), np.array(latents), np.ones(8, np.float32))
    hits_FL = np.array([[6, 0], [2, 0]])
    judged = Judged.of(hits_FL.sum(1), hits_FL, np.array([8, 4]))
    assert judged.stands_F.tolist() == [True, False]
    assert absorbed_rows(places, label_B, judged).tolist() == [2, 0]
