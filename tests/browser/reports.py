"""Small reports of every kind, measured from dictionaries that were trained for a moment."""

import pathlib
from typing import Any

import pytest

from analyze.activity import measure
from analyze.monosemanticity import Embedding
from analyze.recovery import measure_recovery, recovery_row, write_recovery_csv
from analyze.report.build import build
from analyze.stability import measure_stability
from analyze.theory.page import theory_page
from harvest import image_source
from harvest.bench.config import BenchSpec, HierarchySpec
from harvest.bench.source import BenchSource
from harvest.config import HarvestSpec, ImageCorpusSpec, ModelSpec
from harvest.corpora.image_corpus import ImageCorpus
from harvest.corpora.prepare_images import prepare_images
from harvest.files import write_json
from harvest.store import Store
from tests.texts import Texts, make_store
from tests.tiny_vision import TinyTower
from train.anchors import make_anchors
from train.config import DictionarySpec
from train.loop import train
from train.run import Job

SCRIPT = "<script>alert(1)</script>"
IMAGE = "<img src=x onerror=alert(2)>"
TEXT = [SCRIPT, "\"quoted' &amp;", "🤗", "\u202eright to left", "שלום", "\0", "\x1b[31m", "\n", "</script>", IMAGE]
"""Tokens of the corpus that a page could take for something else than text."""
LABELS = [f"</script>{SCRIPT}", "<b>bold</b>"]


def text_report(folder: pathlib.Path) -> pathlib.Path:
    """Hostile texts, labels and names: an SAE without and with resampling and with another seed, and a transcoder."""
    tokens = [token.encode() for token in TEXT]
    store = make_store(Texts([tokens * 3, tokens[::-1] * 5] * 8, LABELS * 8), _harvest(folder, IMAGE))
    common = {"sparsity": {"topk": {"l0": 2}}, "tokens": 3_200, "batch": 64, "holdout": 0.1, "reads": ["in"]}
    specs: dict[str, dict[str, Any]] = {
        "sae": {**common, "latents": 64},
        "again": {**common, "latents": 64, "seed": 1},
        "resampled": {**common, "latents": 64, "resample": {"every": 640, "window": 128}},
        SCRIPT.replace("/", ""): {**common, "latents": 8, "writes": ["out"]},
    }
    _train(folder, store, specs, embedding=Embedding("out"))
    measure_stability(list(specs), folder, folder / "stability.json")
    return _build(folder, IMAGE, specs)


def bench_report(folder: pathlib.Path) -> pathlib.Path:
    """A bench: two dictionaries without anchors and with them, compared with the truth."""
    families = HierarchySpec(parents=3, children=2)
    spec = BenchSpec(
        features=12, sites={"p": 8, "r": 9}, rows=1_000, sparsity=0.8, interference=0.4, hierarchy=families
    )
    store = make_store(BenchSource(spec), _harvest(folder, "bench"))
    common = {"latents": 24, "tokens": 2_000, "batch": 250, "reads": ["p"], "sparsity": {"topk": {"l0": 2}}}
    anchored = {**common, "anchors": {"source": "truth", "count": 3}}
    specs = {"topk": common, "anchored": anchored, "transcoder": {**common, "writes": ["r"]}}
    anchors = {"anchored": folder / "anchored.safetensors"}
    make_anchors(DictionarySpec.model_validate(anchored), store, anchors["anchored"])
    _train(folder, store, specs, anchors)
    for name in specs:
        measure_recovery(folder / "train" / name, store.path, anchors.get(name), folder / "analyze" / name)
    rows = [recovery_row(name, folder / "train" / name, folder / "analyze" / name) for name in specs]
    write_recovery_csv(rows, folder / "recovery.csv")
    write_json(folder / "theory.json", theory_page())
    return _build(folder, "bench", specs, (folder / "recovery.csv", folder / "theory.json"))


def image_report(folder: pathlib.Path) -> pathlib.Path:
    """Digits, by patches."""
    place, site = _harvest(folder, "digits"), "layers.1.resid_post"
    prepare_images(ImageCorpusSpec(digits=True, images=40), place / "corpus.zarr")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_source, "load_vision", lambda _spec, _device: TinyTower())
        patch.setattr(image_source, "model_facts", lambda spec: {"id": spec.id})
        source = image_source.ImageSource(
            ModelSpec(id="tiny", dtype="float32"),
            ImageCorpus(place / "corpus.zarr"),
            HarvestSpec(sites=[site], rows="patches"),
        )
        store = make_store(source, place)
    specs = {"patches": {"reads": [site], "latents": 24, "tokens": 1_280, "batch": 64, "sparsity": {"topk": {"l0": 2}}}}
    _train(folder, store, specs)
    return _build(folder, "digits", specs)


def _harvest(folder: pathlib.Path, name: str) -> pathlib.Path:
    place = folder / "harvest" / name
    place.mkdir(parents=True)
    return place


def _train(
    folder: pathlib.Path,
    store: Store,
    specs: dict[str, dict[str, Any]],
    anchors: dict[str, pathlib.Path] | None = None,
    embedding: Embedding | None = None,
) -> None:
    for name, values in specs.items():
        spec, trained = DictionarySpec.model_validate(values), folder / "train" / name
        train([Job(spec, trained, folder / "checkpoints" / name, (anchors or {}).get(name))], store.path)
        measure(trained, store.path, folder / "analyze" / name, embedding=embedding)


def _build(
    folder: pathlib.Path,
    experiment: str,
    specs: dict[str, dict[str, Any]],
    truth: tuple[pathlib.Path, pathlib.Path] | None = None,
) -> pathlib.Path:
    dictionaries = [(name, folder / "analyze" / name, folder / "train" / name) for name in specs]
    manifests, stability = sorted(folder.glob("harvest/*/*.manifest.json")), folder / "stability.json"
    build(experiment, dictionaries, manifests, folder / "report", truth, stability)
    return folder / "report"
