"""Dead latents begin anew: exactly those, from exactly the inputs drawn, whatever the sparsity and the kind."""

import json
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from harvest.store import Store
from tests.train.test_resume import StoppedError, assert_same
from tests.training import KINDS, metrics_of, run, spec_of, watch_steps
from train.anchors import Anchors
from train.batches import Batch, Batches
from train.checkpoint import Checkpoints
from train.config import DictionarySpec
from train.resampling import Resampling, draw, is_due
from train.sparsity import SPARSITIES
from train.sparsity.jumprelu import JumpReLU
from train.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")
ROWS = 7_600
"""What training may see of the store."""
DEAD = [5, 6, 17, 40, 63]


def trained(store: Store, spec: DictionarySpec, anchors: Anchors | None = None) -> Trainer:
    """A trainer a step before it resamples, with the latents `DEAD` as dead as can be."""
    assert spec.resample is not None
    trainer = Trainer(spec, store, accelerate.Accelerator(), anchors)
    batches = Batches(store, trainer.sites, spec.batch, spec.seed, ROWS)
    for batch in batches.iterate(0, spec.resample.every // spec.batch):
        trainer.train_on(batch)
    trainer.idle_F.zero_()
    trainer.idle_F[DEAD] = spec.resample.every
    return trainer


def resampling(**changes: Any) -> DictionarySpec:
    return spec_of(resample={"every": 128 * 12, "inputs": 3_000}, **changes)


def event_of(trainer: Trainer, store: Store) -> dict[str, Any]:
    event = Resampling(trainer, store, ROWS).after_step()
    assert event is not None
    return event


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


def moments(trainer: Trainer) -> dict[str, Tensor]:
    """Adam's, by the parameter's name."""
    return {
        f"{name} {moment}": trainer.optimizer.state[parameter][moment].clone()
        for name, parameter in trainer.dictionary.named_parameters()
        for moment in ("exp_avg", "exp_avg_sq")
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", SPARSITIES)
def test_exactly_the_dead_begin_anew(store: Store, method: str, kind: str) -> None:
    """Weights, biases and moments of the dead, and not a bit of anything else."""
    trainer = trained(store, resampling(**KINDS[kind], sparsity={method: {"l0": 3}}))
    weights, moved = copied(trainer.dictionary.state_dict()), moments(trainer)
    others = {name: tensor for name, tensor in copied(trainer.state()).items() if not name.startswith("dictionary")}
    assert event_of(trainer, store)["latents"] == DEAD
    live = [latent for latent in range(64) if latent not in DEAD]
    for name, now in trainer.dictionary.state_dict().items():
        if now.shape[:1] == (64,):
            assert torch.equal(now[live], weights[name][live]), name
            assert (now[DEAD] != weights[name][DEAD]).reshape(len(DEAD), -1).any(1).all(), name
        else:
            assert torch.equal(now, weights[name]), name
    for name, now in moments(trainer).items():
        if now.shape[:1] == (64,):
            assert torch.equal(now[live], moved[name][live]), name
            assert bool(moved[name][live].any()), "there is something to lose"
            assert not now[DEAD].any(), name
        else:
            assert torch.equal(now, moved[name]), name
    steps = [name for name in others if name.endswith(("step", "idle", "controller"))]
    assert all(torch.equal(trainer.state()[name], others[name]) for name in steps)
    assert trainer.dictionary.training


@pytest.mark.parametrize("kind", [*KINDS, "skip transcoder"])
def test_directions_are_those_of_the_inputs_drawn(store: Store, kind: str) -> None:
    """Against the rows of the log, in float64 and from the store's own numbers."""
    changes = KINDS.get(kind, {"writes": ["y"], "skip": True})
    trainer = trained(store, resampling(**changes))
    dictionary = trainer.dictionary
    norms_F = dictionary.W_enc.detach().double().norm(dim=1)
    rows = event_of(trainer, store)["rows"]
    assert len(set(rows)) == len(DEAD)
    assert max(rows) < ROWS

    def scaled(sites: list[str]) -> Tensor:
        parts = []
        for site in sites:
            facts = store.statistics(site)
            x_XD = torch.cat([store.read(site, row, row + 1) for row in rows]).double().numpy()
            parts.append(torch.from_numpy((x_XD - facts.mean) / facts.variance.mean() ** 0.5))
        return torch.cat(parts, 1)

    x_XP, y_XR = scaled(trainer.reads), scaled(trainer.writes)
    b_dec = dictionary.b_dec.detach().double()
    beside_XR = b_dec if dictionary.W_skip is None else b_dec + x_XP @ dictionary.W_skip.detach().double().T
    read_XP = x_XP - b_dec if kind in ("sae", "crosscoder") else x_XP
    live = [latent for latent in range(64) if latent not in DEAD]
    wanted = normalize(read_XP) * 0.2 * norms_F[live].mean()
    torch.testing.assert_close(dictionary.W_enc[DEAD].double(), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dictionary.W_dec[DEAD].double(), normalize(y_XR - beside_XR), rtol=1e-4, atol=1e-5)
    if kind in ("sae", "crosscoder"):
        torch.testing.assert_close(normalize(dictionary.W_enc[DEAD]), dictionary.W_dec[DEAD])
    assert not dictionary.b_enc[DEAD].any()


def test_a_threshold_is_what_it_was_at_the_start(store: Store) -> None:
    trainer = trained(store, resampling(sparsity={"jumprelu": {"l0": 3}}))
    at_start = Trainer(trainer.spec, store, accelerate.Accelerator())
    at_start.train_on(next(Batches(store, ["x"], 128, 0, ROWS).iterate(0, 1)))
    event_of(trainer, store)
    sparsity, first = trainer.dictionary.sparsity, at_start.dictionary.sparsity
    assert isinstance(sparsity, JumpReLU)
    assert isinstance(first, JumpReLU)
    # One step of Adam moved it by a learning rate's worth at most.
    torch.testing.assert_close(sparsity.threshold[DEAD], first.threshold[DEAD], rtol=1e-2, atol=0)
    assert len(set(sparsity.threshold[DEAD].tolist())) == 1
    live = [latent for latent in range(64) if latent not in DEAD]
    assert len(set(sparsity.threshold[live].tolist())) > 1


def test_a_gates_magnitude_is_its_opening_again(store: Store) -> None:
    trainer = trained(store, resampling(sparsity={"gated": {"l0": 3}}))
    event_of(trainer, store)
    for parameter in trainer.dictionary.sparsity.parameters():
        assert not parameter[DEAD].any()
        assert parameter.any()


def test_anchored_latents_are_never_resampled(store: Store) -> None:
    directions = normalize(torch.randn(6, 24, generator=torch.Generator().manual_seed(0)))
    spec = resampling(anchors={"source": "clusters", "count": 6})
    trainer = trained(store, spec, Anchors(directions, directions))
    before = copied(trainer.dictionary.state_dict())
    assert event_of(trainer, store)["latents"] == DEAD[1:]
    assert torch.equal(trainer.dictionary.W_enc[:6], before["W_enc"][:6])
    assert torch.equal(trainer.dictionary.W_dec[:6], before["W_dec"][:6])


def test_none_dead_none_resampled(store: Store) -> None:
    trainer = trained(store, resampling())
    trainer.idle_F[DEAD] = 128 * 6 - 1  # half of `every`, less a row
    before = copied(trainer.state())
    assert Resampling(trainer, store, ROWS).after_step() is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.state().items())


@pytest.mark.parametrize("method", SPARSITIES)
def test_losses_are_each_rows_own(store: Store, method: str) -> None:
    """Before and after, over all rows that training may see, against a dense float64 dictionary."""
    spec = spec_of(resample={"every": 128 * 12}, sparsity={method: {"l0": 3}}, writes=["y"])
    trainer = trained(store, spec)
    trainer.rounded = False
    x_BP, y_BR = trainer.scaled(Batch({site: store.read(site, 0, ROWS) for site in ("x", "y")}, np.arange(ROWS)))

    @torch.no_grad()
    def dense() -> Tensor:
        d = trainer.dictionary.eval()
        codes_BF = d.encode(x_BP).dense().double()
        d.train()
        return (codes_BF @ d.W_dec.double() + d.b_dec.double() - y_BR.double()).square().mean(1)

    expected_N = dense()
    measuring = Resampling(trainer, store, ROWS)
    found_N = measuring._losses(np.arange(-(-ROWS // store.layout.chunk_rows)))
    np.testing.assert_allclose(found_N, expected_N.numpy(), rtol=1e-4, atol=1e-6)
    event = event_of(trainer, store)
    assert event["inputs"] == ROWS, "100 batches are more than there are"
    assert event["loss_before"] == pytest.approx(float(expected_N.mean()), rel=1e-5)
    assert event["loss_after"] == pytest.approx(float(dense().mean()), rel=1e-5)
    assert event["loss_after"] != event["loss_before"]


def test_probability_is_proportional_to_the_squared_loss() -> None:
    loss_N = np.array([1.0, 2.0, 3.0, 0.0, 4.0])
    draws = 30_000
    rng = np.random.default_rng(0)
    counts = np.bincount([draw(loss_N, 1, rng)[0] for _ in range(draws)], minlength=5)
    share = loss_N**2 / (loss_N**2).sum()
    deviation = np.abs(counts - draws * share) / np.sqrt(draws * share * (1 - share) + 1e-9)
    assert counts[3] == 0
    assert deviation[[0, 1, 2, 4]].max() < 4
    assert np.abs(counts / draws - loss_N / loss_N.sum()).max() > 0.05, "and not to the loss itself"
    for _ in range(100):
        assert set(draw(loss_N, 4, rng)) == {0, 1, 2, 4}, "none twice"


def test_a_badly_reconstructed_input_is_drawn(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """With almost all of the loss in a few rows, they are the ones that the dead begin from."""
    worst = [11, 1_500, 3_333, 4_321, 7_000]
    loss_N = np.full(ROWS, 1e-3)
    loss_N[worst] = 1e3
    monkeypatch.setattr(Resampling, "_losses", lambda self, chunks: loss_N)
    trainer = trained(store, spec_of(resample={"every": 128 * 12}))
    event = event_of(trainer, store)
    assert sorted(event["rows"]) == worst
    x_XP, _ = trainer.scaled(Batch({"x": torch.cat([store.read("x", r, r + 1) for r in event["rows"]])}, np.arange(5)))
    centred_XP = normalize(x_XP - trainer.dictionary.b_dec)
    torch.testing.assert_close(trainer.dictionary.W_dec[event["latents"]], centred_XP)


@given(st.integers(1, 50), st.integers(1, 400), st.integers(1, 40))
def test_when_it_is_due(batch: int, every: int, times: int) -> None:
    """After the first step that reaches each multiple of `every` up to `until`; a function of the step alone."""
    resample = {"every": every, "until": times * every}
    spec = spec_of(latents=8, tokens=2 * times * every, batch=batch, resample=resample)
    steps = range(1, 2 * times * every // batch + 2)
    reached = {-(-multiple // batch) for multiple in range(every, times * every + 1, every)}
    # A step longer than `every` may pass over several multiples, and over `until` with the last of them.
    if batch <= every:
        assert {step for step in steps if is_due(spec, step)} == reached
        assert len(reached) == times
    else:
        assert {step for step in steps if is_due(spec, step)} <= reached


def test_settings_that_never_resample_are_refused() -> None:
    with pytest.raises(ValueError, match=r"resample.every: .* 7000 rows, is later than the last may be, 6400"):
        spec_of(resample={"every": 7_000})
    with pytest.raises(ValueError, match="window: 2000 rows is longer than every, 1000"):
        spec_of(resample={"every": 1_000, "window": 2_000})
    assert spec_of(resample={"every": 7_000, "until": 7_000}).resample


def kill_most(trainer: Trainer, batch: Batch) -> None:
    """After the first step, 48 of 64 latents read nothing that makes them fire; there are 32 features to find."""
    if trainer.step == 1:
        trainer.dictionary.b_enc.data[16:] = -1e3


@pytest.mark.parametrize("method", SPARSITIES)
def test_it_ends_with_fewer_dead_and_a_lower_loss(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    watch_steps(monkeypatch, kill_most)
    lines = {}
    for name, resample in (("without", None), ("with", {"every": 2_560})):
        spec = spec_of(sparsity={method: {"l0": 3}}, resample=resample, tokens=128 * 160)
        lines[name] = metrics_of(run(spec, store, tmp_path / name))[-1]
    assert lines["without"]["dead_share"] >= 0.75
    assert lines["with"]["dead_share"] < 0.5
    assert lines["with"]["unexplained"] < 0.75 * lines["without"]["unexplained"]


def test_dead_share_counts_rows_since_a_latent_fired(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch_steps(monkeypatch, kill_most)
    by_step = {line["step"]: line["dead_share"] for line in metrics_of(run(spec_of(), store, tmp_path))}
    assert spec_of().dead_after == 1_280
    assert by_step[10] < 0.75, "ten steps are 1,280 rows, and all may have fired in the first"
    assert by_step[11] >= 0.75


def test_a_stopped_run_continues_to_the_same_bytes(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before, at and after a resampling; also after one that no checkpoint knows of."""
    spec = spec_of(resample={"every": 128 * 10, "window": 128 * 2}, latents=256, sparsity={"relu": {"l0": 3}})
    undisturbed = run(spec, store, tmp_path / "undisturbed")
    events = (undisturbed / "resampling.jsonl").read_text().splitlines()
    assert [json.loads(event)["step"] for event in events] == [10, 20, 30, 40, 50]
    original = Checkpoints.save
    for checkpoint_at, stop_at in ((9, 15), (20, 20), (31, 44)):

        def save(
            self: Checkpoints, step: int, *rest: Any, save_at: int = checkpoint_at, stop_at: int = stop_at
        ) -> None:
            if step == save_at:
                original(self, step, *rest)
            if step == stop_at:
                raise StoppedError

        with monkeypatch.context() as patched:
            patched.setattr(Checkpoints, "save", save)
            with pytest.raises(StoppedError):
                run(spec, store, tmp_path / "stopped", every=0)
        with (tmp_path / "stopped/checkpoints/resampling.jsonl").open("a") as file:
            file.write('{"step": 7, "tok')  # a kill in the middle of a line
    assert_same(run(spec, store, tmp_path / "stopped"), undisturbed)
    assert (tmp_path / "stopped/output/resampling.jsonl").read_text().splitlines() == events
