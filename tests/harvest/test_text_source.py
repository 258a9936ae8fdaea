"""A row a text: what the towers' own libraries give for the same texts, whatever the batches and shards."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors

from harvest.config import CorpusSpec, HarvestSpec, ModelSpec
from harvest.corpora.corpus import Corpus
from harvest.corpora.prepare import prepare
from harvest.errors import UserError
from harvest.models.capture import run_until_captured
from harvest.models.load import import_transformers, load_tokenizer
from harvest.models.open_clip_towers import import_open_clip, make_model
from harvest.run import harvest
from harvest.store import Store
from harvest.text_source import TextSource
from tests.tiny import byte_tokenizer, tiny_clip, tiny_gpt2, tiny_open_clip, tiny_siglip

TEXTS = ["Naïve  cats, and dogs!", "a mat", "Two &amp; two are four.", "ice", "so on and on", "the end, it is"]
SITES = ["layers.1.resid_post", "pooled", "pooled_normalized"]


def siglip_tokenizer(folder: Path) -> Any:
    """Ends texts with `</s>` and pads with it, as SigLIP's does."""
    tokenizer = byte_tokenizer(special_tokens=["<unk>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    wrapped = import_transformers().PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>"
    )
    wrapped.save_pretrained(folder)
    return wrapped


def clip(folder: Path) -> tuple[ModelSpec, torch.Tensor]:
    directory = tiny_clip(folder / "clip")
    transformers = import_transformers()
    inputs = load_tokenizer(ModelSpec(id=str(directory)))(TEXTS, padding=True, return_tensors="pt")
    model = transformers.CLIPModel.from_pretrained(directory).eval()
    return ModelSpec(id=str(directory), dtype="float32"), model.get_text_features(**inputs).pooler_output


def siglip(folder: Path) -> tuple[ModelSpec, torch.Tensor]:
    directory = tiny_siglip(folder / "siglip", text={"vocab_size": 402, "max_position_embeddings": 32})
    tokenizer = siglip_tokenizer(directory)
    inputs = tokenizer(TEXTS, padding="max_length", max_length=32, return_tensors="pt")
    model = import_transformers().SiglipModel.from_pretrained(directory).eval()
    features = model.get_text_features(input_ids=inputs["input_ids"]).pooler_output
    return ModelSpec(id=str(directory), dtype="float32"), features


def open_clip(_: Path) -> tuple[ModelSpec, torch.Tensor]:
    architecture = tiny_open_clip({"vocab_size": 49408, "context_length": 32})
    spec = ModelSpec(id="tiny", backend="open_clip", architecture=architecture, random_seed=0, dtype="float32")
    return spec, make_model(spec).encode_text(import_open_clip().SimpleTokenizer(context_length=32)(TEXTS))


def open_clip_siglip(folder: Path) -> tuple[ModelSpec, torch.Tensor]:
    """Another tokenizer than open_clip's own, which cleans texts in a way of its own."""
    siglip_tokenizer(folder / "tokenizer")
    (folder / "tokenizer/config.json").write_text("{}")  # a directory of a model has one
    text = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True, "vocab_size": 402, "context_length": 32}
    text |= {"hf_tokenizer_name": str(folder / "tokenizer"), "tokenizer_kwargs": {"clean": "canonicalize"}}
    architecture = tiny_open_clip(text) | {"custom_text": True}
    spec = ModelSpec(id="tiny", backend="open_clip", architecture=architecture, random_seed=0, dtype="float32")
    own = import_open_clip().tokenizer.HFTokenizer(
        str(folder / "tokenizer"), 32, clean="canonicalize", local_files_only=True
    )
    return spec, make_model(spec).encode_text(own(TEXTS))


def corpus_of(spec: ModelSpec, folder: Path, **keys: Any) -> Corpus:
    folder.mkdir()
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_text(text)
    keys = {"tokens": 10_000, "context": 31, **keys}
    prepare(CorpusSpec(files=f"{folder}/*.txt", **keys), load_tokenizer(spec), folder / "corpus.zarr")
    return Corpus(folder / "corpus.zarr")


@pytest.mark.parametrize("kind", [clip, siglip, open_clip, open_clip_siglip])
@torch.inference_mode()
def test_embeddings_are_the_models_own(kind: Any, tmp_path: Path) -> None:
    spec, features_BD = kind(tmp_path)
    corpus = corpus_of(spec, tmp_path / "texts")
    source = TextSource(spec, corpus, HarvestSpec(sites=SITES, batch_tokens=64, rows="texts"))
    assert source.rows == len(TEXTS)
    values = source.read_sites(0, source.rows)
    torch.testing.assert_close(values["pooled"], features_BD, rtol=1e-4, atol=1e-5)
    normalized_BD = features_BD / features_BD.norm(dim=1, keepdim=True)
    torch.testing.assert_close(values["pooled_normalized"], normalized_BD, rtol=1e-4, atol=1e-5)

    # One text alone: the layer's row is at the token that the embedding is read off.
    tokens, offsets = source._texts(2, 3)
    ids_1T = torch.from_numpy(tokens.astype("int64"))[None]
    inputs = {"input_ids": ids_1T, "attention_mask": torch.ones_like(ids_1T)}
    layer = run_until_captured(source.tower, source.sites[:1], inputs)[SITES[0]]
    torch.testing.assert_close(values[SITES[0]][2], layer[0, -1], rtol=1e-4, atol=1e-5)
    assert tokens[offsets[1] - 1] == source.end


def test_a_store_of_texts(tmp_path: Path) -> None:
    spec = ModelSpec(id=str(tiny_clip(tmp_path / "clip")), dtype="float32")
    corpus = corpus_of(spec, tmp_path / "texts")
    source = TextSource(spec, corpus, HarvestSpec(sites=SITES, rows="texts"))
    harvest(source, tmp_path / "activations.zarr", tmp_path / "activations.manifest.json", source.aliases)
    store = Store(tmp_path / "activations.zarr")
    names = store.labels["source"]
    assert [names[i] for i in store.array("rows/labels/source")[:]] == [f"{number}.txt" for number in range(len(TEXTS))]
    assert list(store.array("rows/document")[:]) == list(range(len(TEXTS)))
    assert not store.has("rows/token")
    for row in range(len(TEXTS)):
        torch.testing.assert_close(
            store.read("pooled", row, row + 1), source.read_sites(0, source.rows)["pooled"][row : row + 1]
        )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"pack": True}, "^rows: texts: a packed corpus has several texts in a sequence; prepare it with pack: false$"),
        ({"context": 32}, "^context: 32 and the end of the text are longer than this model allows; at most 31$"),
    ],
)
def test_what_cannot_be_read_as_texts(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    spec = ModelSpec(id=str(tiny_clip(tmp_path / "clip")), dtype="float32")
    (tmp_path / "long.txt").write_text("on and on " * 40)
    prepare(
        CorpusSpec(files=str(tmp_path / "long.txt"), tokens=200, **keys), load_tokenizer(spec), tmp_path / "corpus.zarr"
    )
    with pytest.raises(UserError, match=message):
        TextSource(spec, Corpus(tmp_path / "corpus.zarr"), HarvestSpec(sites=["pooled"], rows="texts"))


def test_a_model_without_an_embedding_of_texts(tmp_path: Path) -> None:
    spec = ModelSpec(id=str(tiny_gpt2(tmp_path / "gpt2")), dtype="float32")
    with pytest.raises(
        UserError, match=r"^rows: texts: is for the text towers of CLIP and SigLIP; .* has rows: tokens"
    ):
        TextSource(spec, corpus_of(spec, tmp_path / "texts"), HarvestSpec(sites=["final"], rows="texts"))
