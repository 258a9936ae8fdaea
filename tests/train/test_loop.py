"""Training as a whole: what it finds, what it logs, what it never sees."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from harvest.store import Store
from tests.synthetic import Synthetic
from tests.training import KINDS, metrics_of, run, spec_of, watch_steps
from train.batches import Batch
from train.config import DictionarySpec
from train.dictionary import Dictionary
from train.files import load
from train.sparsity import make_sparsity
from train.trainer import Trainer, learning_rate

SOURCE = Synthetic()
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("kind", KINDS)
def test_a_dictionary_recovers_what_the_rows_were_made_of(store: Store, tmp_path: Path, kind: str) -> None:
    """Explained variance in the model's own units, on rows held out, and the directions themselves."""
    spec = spec_of(**KINDS[kind], tokens=60_000, batch=256)
    dictionary, cfg = load(run(spec, store, tmp_path))
    facts = cfg["metadata"]
    assert facts["kind"] == kind
    held_out = range(7_600, 8_000)
    x_BP, y_BR = (
        torch.cat([store.read(site, held_out.start, held_out.stop) for site in facts[key]], 1)
        for key in ("reads", "writes")
    )
    chance = Dictionary(x_BP.shape[1], y_BR.shape[1], make_sparsity("topk", 3, 64), dictionary.centered)
    chance.start(torch.Generator().manual_seed(0))
    with torch.no_grad():
        chance.b_dec.copy_(y_BR.mean(0))
    assert explained(dictionary, x_BP, y_BR) > 0.8
    assert explained(chance, x_BP, y_BR) < 0.4

    width = 0
    for site in facts["writes"]:
        rows = dictionary.W_dec.detach()[:, width : width + store.widths[site]]
        width += store.widths[site]
        cosine = torch.nn.functional.normalize(rows) @ SOURCE.directions(site).T
        assert float((cosine.max(0).values > 0.9).float().mean()) > 0.85


@torch.no_grad()
def explained(dictionary: Dictionary, x_BP: Tensor, y_BR: Tensor) -> float:
    unexplained = (dictionary(x_BP) - y_BR).square().sum() / (y_BR - y_BR.mean(0)).square().sum()
    return 1 - float(unexplained)


def test_what_is_logged_and_left(store: Store, tmp_path: Path) -> None:
    spec = spec_of(tokens=128 * 450)
    output = run(spec, store, tmp_path)
    assert sorted(path.name for path in output.iterdir()) == [
        "cfg.json",
        "metrics.jsonl",
        "resampling.jsonl",
        "sae_weights.safetensors",
        "training.json",
    ]
    assert not (tmp_path / "checkpoints").exists()
    lines, report = metrics_of(output), json.loads((output / "training.json").read_text())
    assert [line["step"] for line in lines] == list(range(2, 451, 2)), "about 200 lines, and the last step"
    assert all(line["tokens"] == 128 * line["step"] for line in lines)
    assert all(line["l0"] <= 3 for line in lines)
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    assert report["last"] == lines[-1]
    assert (report["steps"], report["rows_trained_on"], report["store"]) == (450, 7_600, store.fingerprint)
    assert DictionarySpec.model_validate(report["spec"]) == spec
    for line in lines:
        assert line["learning_rate"] == learning_rate(line["step"] - 1, 450, 6e-3)


def test_learning_rate_rises_stays_and_falls() -> None:
    steps, peak = 1_000, 3e-4
    rates = [learning_rate(step, steps, peak) for step in range(steps)]
    for step, rate in enumerate(rates):
        if step < 50:
            expected = peak * (step + 1) / 50
        elif step <= 800:
            expected = peak
        else:
            expected = peak * (1_000 - step) / 200
        assert rate == pytest.approx(expected, rel=1e-12)
    assert learning_rate(999, 100_000, 1.0) == 1.0
    assert learning_rate(998, 100_000, 1.0) < 1.0, "no warm-up is longer than 1,000 steps"
    for steps in (1, 2, 7):
        assert all(0 < learning_rate(step, steps, peak) <= peak for step in range(steps))
    assert spec_of(learning_rate=None, latents=2**16).peak_learning_rate == pytest.approx(1e-4)


def test_held_out_rows_are_never_seen(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    watch_steps(monkeypatch, lambda trainer, batch: rows.extend(batch.rows.tolist()))
    run(spec_of(holdout=0.25, batch=100, tokens=12_000), store, tmp_path)
    assert sorted(rows) == sorted(2 * list(range(6_000))), "two epochs of the first three quarters"


@pytest.mark.parametrize("kind", KINDS)
def test_decoder_rows_have_unit_norm_after_each_step(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    farthest: list[float] = []

    def norms(trainer: Trainer, batch: Batch) -> None:
        farthest.append(float((trainer.dictionary.W_dec.detach().norm(dim=1) - 1).abs().max()))

    watch_steps(monkeypatch, norms)
    dictionary, _ = load(run(spec_of(**KINDS[kind], tokens=128 * 30), store, tmp_path))
    assert len(farthest) == 30
    assert max(farthest) < 1e-6
    if kind != "crosscoder":  # whose sites have different units
        torch.testing.assert_close(dictionary.W_dec.norm(dim=1), torch.ones(64), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_saved_dictionary_is_the_trained_one(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """In the model's own units it reconstructs what the trained one reconstructs in scaled ones."""
    expected: dict[str, Tensor] = {}
    original = Trainer.finished

    def finished(self: Trainer) -> Dictionary:
        x_BP = torch.cat([store.read(site, 0, 500) for site in self.reads], 1)
        self.dictionary.eval()
        with torch.no_grad():
            codes = self.dictionary.encode(self.read_scaling(x_BP))
            scaled_BR = self.dictionary.decode(codes, self.read_scaling(x_BP))
        expected["latents"] = codes.dense() / self.write_scaling.scale[0]
        expected["output"] = scaled_BR / self.write_scaling.scale + self.write_scaling.mean
        return original(self)

    monkeypatch.setattr(Trainer, "finished", finished)
    dictionary, cfg = load(run(spec_of(**KINDS[kind]), store, tmp_path))
    x_BP = torch.cat([store.read(site, 0, 500) for site in cfg["metadata"]["reads"]], 1)
    with torch.no_grad():
        codes = dictionary.encode(x_BP)
        output_BR = dictionary.decode(codes, x_BP)
    same = (codes.dense() > 0) == (expected["latents"] > 0)
    assert same.all(dim=1).float().mean() > 0.99, "a near tie may fall the other way"
    rows = same.all(dim=1)
    tolerance = 2e-5 * float(expected["output"].abs().max())
    torch.testing.assert_close(output_BR[rows], expected["output"][rows], rtol=1e-4, atol=tolerance)
    torch.testing.assert_close(codes.dense()[rows], expected["latents"][rows], rtol=1e-3, atol=tolerance)
