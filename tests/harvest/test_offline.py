"""A local model is loaded, its tokenizer too, and a harvest runs, without a try at the network."""

import socket
from pathlib import Path
from typing import Any

import pytest

from harvest.config import CorpusSpec, HarvestSpec, ModelSpec
from harvest.corpora.corpus import Corpus
from harvest.corpora.prepare import prepare
from harvest.model_source import ModelSource
from harvest.models.load import load_tokenizer
from harvest.run import harvest
from harvest.store import Store
from tests.tiny import tiny_llama


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was tried, for a library may catch the error and go on."""
    tried: list[Any] = []

    def refuse(*what: Any, **_kwargs: Any) -> None:
        tried.append(what)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tried


@pytest.mark.parametrize(
    ("backend", "site"), [("transformers", "layers.1.resid_post"), ("transformer_lens", "blocks.1.hook_resid_post")]
)
def test_a_harvest_without_the_network(tmp_path: Path, tried: list[Any], backend: Any, site: str) -> None:
    with pytest.raises(OSError, match="no network"):
        socket.create_connection(("localhost", 9))
    assert tried
    tried.clear()
    model = ModelSpec(id=str(tiny_llama(tmp_path / "model")), backend=backend)
    corpus = CorpusSpec(documentation=["tqdm"], tokens=200, context=32)
    prepare(corpus, load_tokenizer(model), tmp_path / "corpus.zarr")
    source = ModelSource(model, Corpus(tmp_path / "corpus.zarr"), HarvestSpec(sites=[site]))
    harvest(source, tmp_path / "activations.zarr", tmp_path / "manifest.json", source.aliases)
    assert Store(tmp_path / "activations.zarr").finished.all()
    assert tried == []
