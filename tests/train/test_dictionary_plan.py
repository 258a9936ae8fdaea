"""What a dictionary is said to cost, against one that is trained."""

import json
from pathlib import Path

import pytest
from torch.utils.flop_counter import FlopCounterMode

from tests.synthetic import Synthetic, synthetic_store
from tests.training import KINDS, command, job_of, spec_of, watch_steps
from train.config import DictionarySpec
from train.dictionary import Dictionary
from train.loop import train
from train.plan import DictionaryPlan, Reading, parameters_of, plan_dictionary
from train.sparsity import SPARSITIES, make_sparsity
from train.trainer import Trainer


def reading_of(store: object, read: int, written: int, item: int = 4, all_widths: int = 40) -> Reading:
    rows, chunk = store.rows, store.layout.chunk_rows  # type: ignore[attr-defined]
    return Reading(rows, chunk, item * all_widths, item * max(read, written), read, written)


@pytest.mark.parametrize("method", SPARSITIES)
@pytest.mark.parametrize("skip", [False, True])
def test_parameters(method: str, skip: bool) -> None:
    spec = spec_of(writes=["y"], skip=skip, sparsity={method: {"l0": 3}})
    made = Dictionary(24, 16, make_sparsity(method, 3, 64), centered=False, skip=skip)
    assert parameters_of(spec, 24, 16) == sum(weight.numel() for weight in made.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_steps_flops_and_files(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dense product is what torch counts; the sparse ones are its embedding bags, which it does not."""
    store = synthetic_store(tmp_path, Synthetic(rows=2000))
    spec = spec_of(**KINDS[kind], tokens=256)
    read, written = {"sae": (24, 24), "transcoder": (24, 16), "crosscoder": (40, 40)}[kind]
    plan = plan_dictionary(spec, reading_of(store, read, written))
    sizes = []

    def checkpointed(trainer: Trainer, _: object) -> None:
        sizes.append(sum(tensor.nbytes for tensor in trainer.state().values()))

    watch_steps(monkeypatch, checkpointed)
    with FlopCounterMode(display=False) as counter:
        train([job_of(spec, tmp_path)], store.path, every=1e9)
    first = 2 * spec.batch * read * spec.latents  # before the first step, σ looks at its batch
    assert plan.steps == json.loads((tmp_path / "output/training.json").read_text())["steps"] == 2
    sparse = 2 * spec.batch * spec.l0 * (2 * read + 3 * written)
    assert counter.get_total_flops() == plan.flops - plan.steps * sparse + first
    weights = (tmp_path / "output/sae_weights.safetensors").stat().st_size
    assert 0 <= weights - plan.weights_bytes < 2000  # its header
    assert plan.checkpoint_bytes == pytest.approx(sizes[-1], rel=0.1)


def peak_of(spec: DictionarySpec, folder: Path) -> tuple[int, DictionaryPlan]:
    """The peak memory of `python -m train run` in a process of its own, and what was planned."""
    store = synthetic_store(folder, Synthetic(rows=4000, widths={"x": 512}))
    command(spec, store, folder)
    found = json.loads((folder / "output/training.json").read_text())
    return found["peak_memory_bytes"], plan_dictionary(spec, reading_of(store, 512, 512, all_widths=512))


def test_memory_grows_with_latents_as_planned(tmp_path: Path) -> None:
    """Between two sizes, what the program itself takes drops out; 16 bytes a weight are most of what is left."""
    peaks, planned = [], []
    for latents in (4096, 24_576):
        spec = spec_of(latents=latents, tokens=4096, batch=1024)
        peak, plan = peak_of(spec, tmp_path / str(latents))
        peaks.append(peak)
        planned.append(plan.rows_bytes + plan.device_bytes)
    assert planned[1] - planned[0] == pytest.approx(peaks[1] - peaks[0], rel=0.3)
    assert planned[0] < peaks[0] < planned[0] + 2 * 2**29  # and half a GiB for Python and torch
