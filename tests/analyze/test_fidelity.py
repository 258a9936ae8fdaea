"""Loss with activations replaced, against hooks written by hand, one text at a time and without padding."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from analyze import fidelity
from analyze.fidelity import measure_fidelity
from harvest.config import CorpusSpec, HarvestSpec, ModelSpec
from harvest.corpora.corpus import Corpus
from harvest.corpora.prepare import prepare
from harvest.errors import UserError
from harvest.model_source import ModelSource
from harvest.models.load import import_transformers, load_tokenizer
from harvest.run import harvest
from harvest.store import Store
from tests.tiny import TEXT, tiny_gpt2, tiny_llama
from train.dictionary import Dictionary
from train.files import load, save
from train.sparsity import make_sparsity

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
SIZES |= {"intermediate_size": 48, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1}
MORE = {
    "Mixtral": {"num_local_experts": 4},
    "Gemma2": {"sliding_window": 8},
    "GPTNeoX": {"max_position_embeddings": 64},
    "Falcon": {"new_decoder_architecture": False},
}


def made(kind: str, directory: Path) -> Path:
    """A tiny causal model of some type with the tokenizer of the tiny Llama."""
    if kind in ("gpt2", "llama"):
        return {"gpt2": tiny_gpt2, "llama": tiny_llama}[kind](directory)
    tiny_llama(directory)
    transformers = import_transformers()
    vocabulary = len(transformers.AutoTokenizer.from_pretrained(directory))
    sizes = {key: value for key, value in SIZES.items() if (kind, key) != ("Falcon", "head_dim")}
    config = getattr(transformers, f"{kind}Config")(**sizes, **MORE[kind], vocab_size=vocabulary, initializer_range=0.1)
    (directory / "model.safetensors").unlink()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(directory)
    return directory


def stored(model: Path, folder: Path, sites: list[str]) -> tuple[ModelSpec, Store]:
    spec = ModelSpec(id=str(model), dtype="float32")
    folder.mkdir(exist_ok=True)
    for number, paragraph in enumerate(TEXT.split("\n\n")):
        (folder / f"{number}.txt").write_text(paragraph)
    prepare(CorpusSpec(files=f"{folder}/*.txt", tokens=160, context=40), load_tokenizer(spec), folder / "corpus.zarr")
    source = ModelSource(spec, Corpus(folder / "corpus.zarr"), HarvestSpec(sites=sites))
    harvest(source, folder / "activations.zarr", folder / "activations.manifest.json", source.aliases)
    return spec, Store(folder / "activations.zarr")


def saved(dictionary: Dictionary, store: Store, reads: list[str], writes: list[str], folder: Path) -> None:
    spec = {"holdout": 0.5, "sparsity": {"relu": {"l0": 4}}}
    facts = {"reads": reads, "writes": writes, "kind": "sae", "store": store.fingerprint, "spec": spec}
    save(dictionary, folder, facts)


def identity(width: int) -> Dictionary:
    """Each latent is one side of one dimension: what is written is what was read."""
    dictionary = Dictionary(width, width, make_sparsity("relu", width, 2 * width), centered=True)
    both = torch.cat([torch.eye(width), -torch.eye(width)])
    with torch.no_grad():
        dictionary.W_enc.copy_(both)
        dictionary.W_dec.copy_(both)
    return dictionary


def drawn(read: int, written: int, centered: bool) -> Dictionary:
    dictionary = Dictionary(read, written, make_sparsity("topk", 5, 40), centered)
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in (dictionary.W_enc, dictionary.W_dec, dictionary.b_dec):
            weight.copy_(torch.randn(weight.shape, generator=random) / 3)
    return dictionary


def measured(spec: ModelSpec, store: Store, dictionary: Path) -> Any:
    measure_fidelity(dictionary, store.path, spec, store.path.with_name("corpus.zarr"), dictionary)
    return json.loads((dictionary / "fidelity.json").read_text())


@pytest.mark.parametrize("kind", ["gpt2", "llama", *MORE])
def test_a_perfect_reconstruction_changes_nothing(kind: str, tmp_path: Path) -> None:
    sites = ["embed", "layers.1.resid_pre", "layers.1.mlp_in", "layers.0.mlp_out", "layers.1.resid_post", "final"]
    spec, store = stored(made(kind, tmp_path / "model"), tmp_path / "store", sites)
    assert set(store.widths) == set(sites)
    for number, site in enumerate(sites):
        folder = tmp_path / str(number)
        saved(identity(store.widths[site]), store, [site], [site], folder)
        found = measured(spec, store, folder)
        assert found["not_measured"] is None
        figures = found["sites"][site]
        assert figures["ce_spliced"] == pytest.approx(figures["ce_clean"], abs=1e-5)
        assert figures["kl"] == pytest.approx(0, abs=1e-6)
        assert abs(figures["ce_zero"] - figures["ce_clean"]) > 1e-5
        if figures["loss_recovered"] is not None:
            assert figures["loss_recovered"] == pytest.approx(1, abs=0.05)


def by_hand(directory: Path, store: Store, read: str, module_of: Any, dictionary: Dictionary) -> dict[str, float]:
    """GPT-2's loss on each of the store's texts alone, with plain PyTorch hooks on one of its modules."""
    model = import_transformers().GPT2LMHeadModel.from_pretrained(directory).eval()
    corpus = Corpus(store.path.with_name("corpus.zarr"))
    tokens, keep, offsets = corpus.read_sequences(0, len(corpus.sequences) - 1)
    kept = int(store.rows * 0.5)
    sums = dict.fromkeys(("ce_clean", "ce_spliced", "ce_zero", "kl"), 0.0)
    count = row = 0
    for begin, end in itertools.pairwise(offsets.tolist()):
        ids = torch.from_numpy(tokens[begin:end].astype("int64"))[None]
        held = torch.arange(row, row + int(keep[begin:end].sum())) >= kept
        row += len(held)
        if not held.any():
            continue
        seen: list[Tensor] = []
        handle = module_of(model).register_forward_hook(
            lambda _m, args, out, seen=seen: seen.append(read_of(read, args, out))
        )
        clean = model(ids).logits[0]
        handle.remove()
        output = dictionary(seen[0][0])
        logs = {"ce_clean": clean.log_softmax(1)}
        for name, value in (("ce_spliced", output), ("ce_zero", torch.zeros_like(output))):

            def replace(_m: Any, _args: Any, out: Any, value: Tensor = value, held: Tensor = held) -> Any:
                tensor = out[0] if isinstance(out, tuple) else out
                new = torch.where(held[None, :, None], value[None], tensor)
                return (new, *out[1:]) if isinstance(out, tuple) else new

            handle = module_of(model).register_forward_hook(replace)
            logs[name] = model(ids).logits[0].log_softmax(1)
            handle.remove()
        at = held[:-1].nonzero()[:, 0]
        for name, log in logs.items():
            sums[name] -= float(log[at, ids[0, 1:][at]].sum())
        sums["kl"] += float((logs["ce_clean"].exp() * (logs["ce_clean"] - logs["ce_spliced"]))[at].sum())
        count += len(at)
    return {name: value / count for name, value in sums.items()} | {"rows": count}


def read_of(read: str, args: Any, out: Any) -> Tensor:
    value = args[0] if read.endswith("_in") else (out[0] if isinstance(out, tuple) else out)
    assert isinstance(value, Tensor)
    return value


@pytest.mark.parametrize(
    ("read", "written"), [("layers.1.resid_post", "layers.1.resid_post"), ("layers.1.mlp_in", "layers.1.mlp_out")]
)
@torch.inference_mode()
def test_equals_hooks_written_by_hand(read: str, written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "BATCH_TOKENS", 100)
    monkeypatch.setattr(fidelity, "LOGITS_AT_ONCE", 3000)
    directory = tiny_gpt2(tmp_path / "model")
    spec, store = stored(directory, tmp_path / "store", list(dict.fromkeys([read, written])))
    dictionary = drawn(32, 32, read == written)
    saved(dictionary, store, [read], [written], tmp_path / "dictionary")
    found = measured(spec, store, tmp_path / "dictionary")
    layer = "transformer.h.1" if read == written else "transformer.h.1.mlp"
    wanted = by_hand(directory, store, read, lambda m: m.get_submodule(layer), load(tmp_path / "dictionary")[0])
    figures = found["sites"][written]
    assert found["rows"] == wanted.pop("rows")
    assert {name: figures[name] for name in wanted} == pytest.approx(wanted, rel=1e-5)
    recovered = (wanted["ce_zero"] - wanted["ce_spliced"]) / (wanted["ce_zero"] - wanted["ce_clean"])
    if wanted["ce_zero"] > wanted["ce_clean"]:
        assert figures["loss_recovered"] == pytest.approx(recovered, rel=1e-3)


def test_a_dictionary_of_nothing_is_zero_ablation_and_several_sites_are_replaced_together(tmp_path: Path) -> None:
    sites = ["layers.0.resid_post", "layers.2.mlp_out"]
    spec, store = stored(tiny_llama(tmp_path / "model"), tmp_path / "store", sites)
    nothing = identity(48)
    with torch.no_grad():
        nothing.W_dec.zero_()
    for name, dictionary in (("nothing", nothing), ("whole", identity(48))):
        saved(dictionary, store, sites, sites, tmp_path / name)
        found = measured(spec, store, tmp_path / name)["sites"]
        assert list(found) == sorted([*sites, "all"])
        for figures in found.values():
            wanted = figures["ce_zero" if name == "nothing" else "ce_clean"]
            assert figures["ce_spliced"] == pytest.approx(wanted, abs=1e-5)
        assert len({figures["ce_zero"] for figures in found.values()}) == 3


def test_what_predicts_no_token_is_said(tmp_path: Path) -> None:
    transformers = import_transformers()
    directory = tiny_llama(tmp_path / "model")
    (directory / "model.safetensors").unlink()
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=400)).save_pretrained(directory)
    spec, store = stored(directory, tmp_path / "store", ["layers.1.resid_post"])
    saved(identity(32), store, ["layers.1.resid_post"], ["layers.1.resid_post"], tmp_path / "dictionary")
    found = measured(spec, store, tmp_path / "dictionary")
    assert found["sites"] == {}
    assert "it is a BertModel" in found["not_measured"]


def test_another_model_or_corpus_is_refused(tmp_path: Path) -> None:
    spec, store = stored(tiny_llama(tmp_path / "model"), tmp_path / "store", ["layers.1.resid_post"])
    saved(identity(24), store, ["layers.1.resid_post"], ["layers.1.resid_post"], tmp_path / "dictionary")
    other, elsewhere = stored(tiny_gpt2(tmp_path / "other"), tmp_path / "elsewhere", ["layers.1.resid_post"])
    with pytest.raises(UserError, match=r"^--model: .*other is not the model that the rows of .* are from$"):
        measured(other, store, tmp_path / "dictionary")
    with pytest.raises(UserError, match=r"^--corpus: .* is not the corpus that the rows of .* are from$"):
        measure_fidelity(
            tmp_path / "dictionary", store.path, spec, elsewhere.path.with_name("corpus.zarr"), tmp_path / "dictionary"
        )
