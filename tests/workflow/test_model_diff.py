"""A crosscoder of two models on one corpus, and an SAE from elsewhere for one of them, from models to report."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from tests.tiny import tiny_llama
from tests.workflow.conftest import run

SITE = "layers.50%.resid_post"


def published_sae(folder: Path) -> None:
    """A TopK of 60 latents, laid out as SAELens did before version 6."""
    folder.mkdir()
    shapes = {"W_enc": (24, 60), "b_enc": (60,), "W_dec": (60, 24), "b_dec": (24,)}
    random = np.random.default_rng(0)
    weights = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(weights, folder / "sae_weights.safetensors")
    cfg = {"d_in": 24, "d_sae": 60, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}, "model_name": "tiny"}
    (folder / "cfg.json").write_text(json.dumps(cfg))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diff")
    tiny_llama(folder / "base")
    tiny_llama(folder / "chat", initializer_range=0.2)
    published_sae(folder / "published")
    names = ("base", "chat")
    dictionary = {"harvest": list(names), "latents": 48, "sparsity": {"topk": {"l0": 4}}, "tokens": 4000, "batch": 256}
    config = {
        "models": {name: {"id": str(folder / name), "dtype": "float32"} for name in names},
        "corpora": {"docs": {"documentation": ["tqdm", "typer"], "tokens": 2000, "context": 48}},
        "harvests": {name: {"model": name, "corpus": "docs", "sites": [SITE]} for name in names},
        "dictionaries": {
            "diff": {**dictionary, "reads": [f"{name}/{SITE}" for name in names]},
            "anchored": {
                **dictionary,
                "reads": [f"base/{SITE}"],
                "writes": [f"chat/{SITE}"],
                "anchors": {"source": "labels.package", "count": 2},
            },
            "published": {"harvest": "base", "load": str(folder / "published"), "reads": [SITE]},
        },
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    done = run(folder)
    assert done.returncode == 0, done.stderr
    return folder / "results/tiny"


def test_every_latent_has_a_share_of_norm_in_each_model(folder: Path) -> None:
    weights = load_file(folder / "train/diff/sae_weights.safetensors")["W_dec"].astype(np.float64).reshape(48, -1)
    norms = np.stack([np.linalg.norm(part, axis=1) for part in np.split(weights, 2, axis=1)], 1)
    for place, name in enumerate(("base", "chat")):
        manifest = json.loads((folder / f"harvest/{name}/activations.manifest.json").read_text())
        norms[:, place] /= manifest["sites"]["layers.2.resid_post"]["total_variance"] ** 0.5
    shares = load_file(folder / "analyze/diff/latents.safetensors")["decoder_norm_share"]
    np.testing.assert_allclose(shares, norms / norms.sum(1, keepdims=True), rtol=1e-5)
    summary = json.loads((folder / "analyze/diff/summary.json").read_text())
    assert sorted(summary["whole"]["explained_variance_by_site"]) == [
        "base/layers.2.resid_post",
        "chat/layers.2.resid_post",
    ]
    assert "decoder_norm_share" not in load_file(folder / "analyze/anchored/latents.safetensors")


def test_the_report_names_both_harvests(folder: Path) -> None:
    page = (folder / "report/dictionaries/diff.html").read_text()
    assert "base, chat" in page
    assert "Share of decoder norm" in page
    shares = load_file(folder / "analyze/diff/latents.safetensors")["decoder_norm_share"]
    index = (folder / "report/features/diff/index.js").read_text()
    (shown,) = re.findall(r'"key":"norm/chat/layers.2.resid_post".*?"values":\[([^\]]*)\]', index)
    assert [float(share) for share in shown.split(",")] == pytest.approx(shares[:, 1].tolist(), rel=1e-3)
    assert "Share of decoder norm" not in (folder / "report/dictionaries/anchored.html").read_text()


def test_cfg_json_keeps_the_harvests_names(folder: Path) -> None:
    sites = ["base/layers.2.resid_post", "chat/layers.2.resid_post"]
    facts = json.loads((folder / "train/diff/cfg.json").read_text())["metadata"]
    assert facts["reads"] == facts["writes"] == sites


def test_an_sae_from_elsewhere_is_measured_and_shown(folder: Path) -> None:
    summary = json.loads((folder / "analyze/published/summary.json").read_text())
    assert (summary["latents"], summary["whole"]["rows"], summary["held_out"]) == (60, 2000, None)
    assert 0 < summary["whole"]["l0"] <= 5
    training = json.loads((folder / "train/published/training.json").read_text())
    assert training["loaded"]["model_name"] == "tiny"
    page = (folder / "report/dictionaries/published.html").read_text()
    assert f"<dd>{folder.parents[1] / 'published'}</dd>" in page
    assert '"dictionaries/published.html"' in (folder / "report/index.html").read_text()
