"""Stability against dense cosines and scipy's own assignment."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from scipy.optimize import linear_sum_assignment
from torch.nn.functional import normalize

from analyze import directions, matching, stability
from analyze.matching import match
from analyze.stability import measure_stability
from harvest.errors import UserError
from tests.training import spec_of
from train.dictionary import Dictionary
from train.files import save
from train.sparsity import make_sparsity


@pytest.mark.parametrize(("rows", "others"), [(1, 1), (40, 40), (300, 300), (200, 310)])
@pytest.mark.parametrize("candidates", [1, 4, 64])
def test_a_match_is_as_good_as_the_hungarian_one(
    monkeypatch: pytest.MonkeyPatch, rows: int, others: int, candidates: int
) -> None:
    monkeypatch.setattr(matching, "CANDIDATES", candidates)
    random = torch.Generator().manual_seed(rows)
    x, y = (normalize(torch.randn(count, 12, generator=random)) for count in (rows, others))
    y[: rows // 2] = normalize(x[: rows // 2] + 0.1 * y[: rows // 2])
    x[:3] = x[0]  # who all want the same
    which, values = match(x, y)
    cosines = (x @ y.T).numpy()
    assert len(set(which.tolist())) == rows
    np.testing.assert_allclose(values, cosines[np.arange(rows), which], atol=1e-6)
    best = cosines[linear_sum_assignment(cosines, maximize=True)]
    assert values.astype(np.float64).sum() == pytest.approx(best.sum(), rel=1e-6)


def make(results: pathlib.Path, name: str, latents: int = 50, store: str = "s", **changes: Any) -> np.ndarray:
    """A dictionary with random rows, of which every fifth latent is dead; its decoder in float64."""
    spec = spec_of(latents=latents, **changes)
    widths = {"x": 6, "y": 4}
    written = sum(widths[site] for site in spec.written)
    dictionary = Dictionary(sum(widths[site] for site in spec.reads), written, make_sparsity("topk", 3, latents), False)
    dictionary.W_dec.data.normal_(generator=torch.Generator().manual_seed(sum(name.encode())))
    facts = {"reads": spec.reads, "writes": spec.written, "widths": widths, "store": store, "spec": spec.model_dump()}
    save(dictionary, results / "train" / name, facts)
    (results / "analyze" / name).mkdir(parents=True)
    firing = np.where(np.arange(latents) % 5, 7, 0)
    save_file({"firing": firing}, results / "analyze" / name / "latents.safetensors")
    return dictionary.W_dec.detach().double().numpy()


def unit(x: np.ndarray) -> np.ndarray:
    made: np.ndarray = x / np.linalg.norm(x, axis=1, keepdims=True)
    return made


def run(results: pathlib.Path, *names: str) -> dict[str, Any]:
    measure_stability(names, results, results / "stability.json")
    found: dict[str, Any] = json.loads((results / "stability.json").read_text())
    return found


def test_seeds_are_matched_and_partners_are_nearest(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directions, "BLOCK_PLACES", 50 * 7)
    a, b = make(tmp_path, "a"), make(tmp_path, "b", seed=1)
    larger = make(tmp_path, "larger", latents=70)
    make(tmp_path, "other-store", store="t", seed=1)
    make(tmp_path, "other-site", seed=1, writes=["y"])
    found = run(tmp_path, "a", "b", "larger", "other-store", "other-site")
    assert [pair["of"] for pair in found["pairs"]] == [["a", "b"]]
    (pair,) = found["pairs"]
    live = np.arange(50) % 5 > 0
    cosines = unit(a[live]) @ unit(b[live]).T
    best = cosines[linear_sum_assignment(cosines, maximize=True)]
    figures = pair["matched_cosine"]
    assert figures["mean"] == pytest.approx(best.mean(), rel=1e-6)
    assert figures["median"] == pytest.approx(np.median(best), rel=1e-6)
    assert 0 < figures["above_0.9"] == pytest.approx((best > 0.9).mean())
    assert pair["live"] == [40, 40]
    assert pair["counts"] == np.histogram(best, pair["edges"])[0].tolist()
    assert sum(pair["counts"]) == 40
    all_three = {"a": a, "b": b, "larger": larger}
    pairs = [[one, other] for one in all_three for other in all_three if one != other]
    assert sorted(found["partners"]) == pairs
    for one, other in pairs:
        cosines = unit(all_three[one]) @ unit(all_three[other]).T
        file = load_file(tmp_path / f"stability/{one}--{other}.safetensors")
        assert file["partner"].dtype == np.int32
        np.testing.assert_array_equal(file["partner"], cosines.argmax(1))
        np.testing.assert_allclose(file["cosine"], cosines.max(1), atol=1e-6)
    assert len(list((tmp_path / "stability").iterdir())) == len(pairs)


def test_a_seed_that_found_the_same(tmp_path: pathlib.Path) -> None:
    make(tmp_path, "a")
    make(tmp_path, "b", seed=1)
    weights = (tmp_path / "train/a/sae_weights.safetensors").read_bytes()
    (tmp_path / "train/b/sae_weights.safetensors").write_bytes(weights)
    (pair,) = run(tmp_path, "a", "b")["pairs"]
    assert pair["matched_cosine"] == pytest.approx({"mean": 1, "median": 1, "above_0.9": 1})
    assert pair["counts"][-1] == 40


def test_sites_of_a_crosscoder_weigh_the_same(tmp_path: pathlib.Path) -> None:
    a, b = (make(tmp_path, name, seed=seed, reads=["x", "y"]) for seed, name in enumerate("ab"))
    for name, W_dec in (("a", a), ("b", b)):
        path = tmp_path / "train" / name / "sae_weights.safetensors"
        tensors = load_file(path)
        W_dec[:, :6] *= 1000
        save_file({**tensors, "W_dec": W_dec.astype(np.float32)}, path)
        for part in (slice(0, 6), slice(6, 10)):
            W_dec[:, part] /= np.sqrt((W_dec[:, part] ** 2).sum(1).mean())
    run(tmp_path, "a", "b")
    found = load_file(tmp_path / "stability/a--b.safetensors")["partner"]
    np.testing.assert_array_equal(found, (unit(a) @ unit(b).T).argmax(1))


def test_many_dictionaries_are_compared_where_they_differ_in_one_key(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stability, "ALL_PAIRS", 3)
    make(tmp_path, "a")
    make(tmp_path, "seed", seed=1)
    make(tmp_path, "relu", sparsity={"relu": {"l0": 3}})
    make(tmp_path, "resampled", resample={"every": 1000})
    found = run(tmp_path, "a", "seed", "relu", "resampled")
    assert sorted(found["partners"]) == sorted(
        pair for name in ("seed", "relu", "resampled") for pair in (["a", name], [name, "a"])
    )


def test_mistakes(tmp_path: pathlib.Path) -> None:
    make(tmp_path, "a")
    make(tmp_path, "b", seed=1)
    assert run(tmp_path, "a") == {"pairs": [], "partners": []}
    with pytest.raises(UserError, match=r"^names: a, a: each dictionary may be given once$"):
        run(tmp_path, "a", "a")
    with pytest.raises(UserError, match=r"^dictionary c: .*cfg.json: cannot be read"):
        run(tmp_path, "a", "c")
    (tmp_path / "analyze/b/latents.safetensors").unlink()
    with pytest.raises(UserError, match=r"^measurements .*b: latents.safetensors cannot be read .*; run `python -m"):
        run(tmp_path, "a", "b")
