"""A model's activations in a store, against hand-written hooks on the text that each row says it came from."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import zarr

from harvest import model_source
from harvest.config import CorpusSpec, Dtype, HarvestSpec, ModelSpec
from harvest.corpora import documentation, prepare
from harvest.corpora.corpus import Corpus
from harvest.corpora.documents import Document
from harvest.errors import UserError
from harvest.model_source import ModelSource
from harvest.models.load import import_transformers, load_tokenizer
from harvest.run import harvest
from harvest.store import Store
from tests.tiny import TEXT, tiny_gpt2, tiny_llama

MAKERS = {"gpt2": tiny_gpt2, "llama": tiny_llama}
SITES = ["layers.1.mlp_in", "layers.1.mlp_out", "layers.1.resid_post", "embed"]
CONTEXT = 24
LENGTHS = [3, 400, 1, 90, 57, 7, 800, 23]
DOCUMENTS = [
    Document((TEXT * 2)[start : start + length], {"package": f"package{number % 3}"}, f"package.{number}")
    for number, (start, length) in enumerate(zip(range(0, 800, 100), LENGTHS, strict=True))
]


class Harvested(NamedTuple):
    family: str
    spec: ModelSpec
    corpus: Corpus
    source: ModelSource
    store: Store


def prepared(folder: Path, spec: ModelSpec, documents: list[Document] = DOCUMENTS, **what: int) -> Corpus:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documentation, "documents", lambda _spec, _left_out: iter(documents))
        corpus = CorpusSpec(documentation="installed", **{"tokens": 10**6, "context": CONTEXT, **what})
        prepare.prepare(corpus, load_tokenizer(spec), folder / "corpus.zarr")
    return Corpus(folder / "corpus.zarr")


@pytest.fixture(scope="module", params=[(family, dtype) for family in MAKERS for dtype in ("float32", "bfloat16")])
def harvested(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Harvested:
    family, dtype = request.param
    folder = tmp_path_factory.mktemp(family)
    spec = ModelSpec(id=str(MAKERS[family](folder / "model")), dtype=dtype)
    corpus = prepared(folder, spec)
    source = ModelSource(spec, corpus, HarvestSpec(sites=SITES, batch_tokens=100))
    harvest(source, folder / "activations.zarr", folder / "activations.manifest.json", source.aliases)
    return Harvested(family, spec, corpus, source, Store(folder / "activations.zarr"))


def bare_model(spec: ModelSpec) -> Any:
    """The model as anyone would load it, without any code of the harvest's."""
    transformers = import_transformers()
    return transformers.AutoModel.from_pretrained(spec.id, dtype=getattr(torch, spec.dtype)).eval()


def by_hand(model: Any, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """All `SITES` from hooks written for GPT-2 and for Llama: site -> `(B, T, width)`."""
    block = model.h[1] if hasattr(model, "h") else model.layers[1]
    seen: dict[str, torch.Tensor] = {}

    def first(value: Any) -> torch.Tensor:
        return (value[0] if isinstance(value, tuple) else value).clone()

    handles = [
        block.mlp.register_forward_pre_hook(lambda _module, args: seen.update({"layers.1.mlp_in": first(args)})),
        block.mlp.register_forward_hook(lambda *args: seen.update({"layers.1.mlp_out": first(args[-1])})),
        block.register_forward_hook(lambda *args: seen.update({"layers.1.resid_post": first(args[-1])})),
        model.get_input_embeddings().register_forward_hook(lambda *args: seen.update({"embed": first(args[-1])})),
    ]
    with torch.inference_mode():
        model(**inputs)
    for handle in handles:
        handle.remove()
    return seen


def whole(store: Store) -> dict[str, torch.Tensor]:
    return {site: store.read(site, 0, store.rows) for site in SITES}


def sequences(harvested: Harvested) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Each document's token ids, cut as the corpus says: document, ids as the model sees them, which are kept."""
    tokenizer = load_tokenizer(harvested.spec)
    bos = [0] if harvested.family == "llama" else []
    for number, document in enumerate(DOCUMENTS):
        ids = tokenizer(document.text, add_special_tokens=False)["input_ids"]
        for start in range(0, len(ids), CONTEXT - len(bos)):
            piece = [*bos, *ids[start : start + CONTEXT - len(bos)]]
            yield number, np.array(piece), np.arange(len(piece)) >= len(bos)


def test_row_metadata_match_the_text(harvested: Harvested) -> None:
    group = zarr.open_group(harvested.store.path, mode="r")
    row = {name: group[f"rows/{name}"][:] for name in ("document", "position", "token")}
    labels, names = group["rows/labels/package"][:], group["rows/labels/package"].attrs["names"]
    offsets, spelled = group["vocabulary/offsets"][:], group["vocabulary/bytes"][:].tobytes()
    for number, document in enumerate(DOCUMENTS):
        mine = row["document"] == number
        assert row["position"][mine].tolist() == list(range(mine.sum()))
        assert {names[label] for label in labels[mine]} == {document.labels["package"]}
        text = b"".join(spelled[offsets[token] : offsets[token + 1]] for token in row["token"][mine])
        assert text == document.text.encode()
    assert len(row["document"]) == harvested.store.rows == sum(keep.sum() for _, _, keep in sequences(harvested))


def test_rows_equal_a_hook_on_the_sequence_alone(harvested: Harvested) -> None:
    """One sequence at a time, without padding: what is stored does not depend on what was run beside it."""
    model = bare_model(harvested.spec)
    tolerance = {"float32": {"rtol": 1e-5, "atol": 1e-6}, "bfloat16": {"rtol": 0.05, "atol": 0.02}}
    stored = whole(harvested.store)
    row = 0
    for _, ids, keep in sequences(harvested):
        values = by_hand(model, input_ids=torch.from_numpy(ids)[None])
        for site in SITES:
            rows_ND = stored[site][row : row + int(keep.sum())]
            torch.testing.assert_close(rows_ND, values[site][0][keep], **tolerance[harvested.spec.dtype])
        row += int(keep.sum())
    assert row == harvested.store.rows


def test_rows_equal_a_hook_on_the_same_batch(harvested: Harvested, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, in both types: the batches that the harvest ran, run again with hand-written hooks."""
    model, store = bare_model(harvested.spec), harvested.store
    ran: list[tuple[torch.Tensor, torch.Tensor]] = []
    capture = model_source.capture

    def watched(model: Any, sites: Any, ids_BT: torch.Tensor, mask_BT: torch.Tensor, *take: Any) -> Any:
        ran.append((ids_BT, mask_BT))
        return capture(model, sites, ids_BT, mask_BT, *take)

    monkeypatch.setattr(model_source, "capture", watched)
    known = {tuple(ids): (row, keep) for row, ids, keep in numbered(sequences(harvested))}
    stored = whole(store)
    compared = 0
    for start in range(0, store.rows, store.layout.shard_rows):
        stop = min(start + store.layout.shard_rows, store.rows)
        ran.clear()
        harvested.source.read_sites(start, stop)
        for ids_BT, mask_BT in ran:
            values = by_hand(model, input_ids=ids_BT, attention_mask=mask_BT)
            for line, (ids_T, mask_T) in enumerate(zip(ids_BT, mask_BT, strict=True)):
                row, keep = known[tuple(ids_T[mask_T.bool()].tolist())]
                rows = np.arange(row, row + keep.sum())
                here = (rows >= start) & (rows < stop)
                for site in SITES:
                    rows_ND = stored[site][max(row, start) : min(row + int(keep.sum()), stop)]
                    assert torch.equal(rows_ND, values[site][line, : len(keep)][keep][here]), (site, row)
                compared += int(here.sum())
    assert compared == store.rows


def numbered(found: Iterator[tuple[int, np.ndarray, np.ndarray]]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """The first row of each sequence, instead of its document."""
    row = 0
    for _, ids, keep in found:
        yield row, ids, keep
        row += int(keep.sum())


def test_the_corpus_is_as_awkward_as_it_should_be(harvested: Harvested) -> None:
    """Sequences straddle shards, batches mix lengths, and token id 0 is a token: at the start, or kept as a row."""
    ends = np.cumsum([keep.sum() for _, _, keep in sequences(harvested)])
    borders = np.arange(1, math.ceil(harvested.store.rows / harvested.store.layout.shard_rows))
    assert not set(borders * harvested.store.layout.shard_rows) <= set(ends)
    assert len({len(ids) for _, ids, _ in sequences(harvested)}) > 3
    if harvested.family == "llama":
        assert all(ids[0] == 0 and not keep[0] for _, ids, keep in sequences(harvested))


def test_a_kept_token_of_id_0(tmp_path: Path) -> None:
    """GPT-2's id 0 is `!`: rows of it are stored wherever it stands, at the end of a short sequence too."""
    spec = ModelSpec(id=str(tiny_gpt2(tmp_path / "model")), dtype="float32")
    texts = ["!!!", "A store of rows!!", "A longer sequence to be padded against!", "!"]
    corpus = prepared(tmp_path, spec, [Document(text, {}, text) for text in texts], context=64)
    source = ModelSource(spec, corpus, HarvestSpec(sites=SITES))
    tokenizer, model = load_tokenizer(spec), bare_model(spec)
    assert tokenizer("!!!")["input_ids"] == [0, 0, 0]
    stored = source.read_sites(0, corpus.rows)
    row = 0
    for text in texts:
        ids_1T = torch.tensor(tokenizer(text)["input_ids"])[None]
        for site, values in by_hand(model, input_ids=ids_1T).items():
            torch.testing.assert_close(stored[site][row : row + ids_1T.shape[1]], values[0], rtol=1e-5, atol=1e-6)
        row += ids_1T.shape[1]
    assert row == corpus.rows


def test_a_range_gives_the_same_bytes_whatever_was_read_before(harvested: Harvested) -> None:
    source, size = harvested.source, harvested.store.layout.shard_rows
    first = source.read_sites(size, 2 * size)
    source.read_sites(0, harvested.store.rows)
    again = source.read_sites(size, 2 * size)
    assert all(torch.equal(first[site], again[site]) for site in SITES)


def test_one_pass_serves_all_sites(harvested: Harvested) -> None:
    """And no batch holds more tokens than asked for, or sequences much shorter than its longest."""
    masks: list[torch.Tensor] = []
    handle = harvested.source.model.register_forward_pre_hook(
        lambda _module, _args, inputs: masks.append(inputs["attention_mask"]), with_kwargs=True
    )
    harvested.source.read_sites(0, harvested.corpus.rows)
    handle.remove()
    assert sum(len(mask_BT) for mask_BT in masks) == len(list(sequences(harvested)))
    assert all(mask_BT.numel() <= 100 for mask_BT in masks)
    assert all(int(mask_BT.sum(1).min()) >= 0.75 * mask_BT.shape[1] for mask_BT in masks)
    full = [mask_BT for mask_BT in masks if mask_BT.shape[1] == CONTEXT]
    assert len(full[0]) == 100 // CONTEXT


def test_relative_depth_and_duplicates(harvested: Harvested) -> None:
    """A site named twice is stored once, and both names find it."""
    depth = {"gpt2": 3, "llama": 4}[harvested.family]
    names = ["layers.1.resid_post", f"layers.{100 / depth:.3f}%.resid_post"]
    source = ModelSource(harvested.spec, harvested.corpus, HarvestSpec(sites=names))
    assert list(source.widths) == ["layers.1.resid_post"]
    assert source.aliases == dict.fromkeys(names, "layers.1.resid_post")


def test_a_sweep_stores_every_layer_from_one_pass(harvested: Harvested) -> None:
    """Only a name that stands for one site is another name for it."""
    sites = ["layers.*.resid_post", "layers.0%.resid_post"]
    source = ModelSource(harvested.spec, harvested.corpus, HarvestSpec(sites=sites, batch_tokens=100))
    assert list(source.widths) == [
        f"layers.{layer}.resid_post" for layer in range({"gpt2": 3, "llama": 4}[harvested.family])
    ]
    assert source.aliases == {"layers.0%.resid_post": "layers.0.resid_post"}
    rows = source.read_sites(0, 20)
    assert torch.equal(rows["layers.1.resid_post"], harvested.store.read("layers.1.resid_post", 0, 20))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_facts_tell_apart_what_gives_other_rows(tmp_path: Path, dtype: Dtype) -> None:
    spec = ModelSpec(id=str(tiny_llama(tmp_path / "model")), dtype=dtype)
    corpus = prepared(tmp_path, spec)
    facts = ModelSource(spec, corpus, HarvestSpec(sites=SITES)).facts
    moved = (tmp_path / "model").rename(tmp_path / "moved")
    assert ModelSource(spec.model_copy(update={"id": str(moved)}), corpus, HarvestSpec(sites=SITES)).facts == facts
    other = ModelSpec(id=str(tiny_llama(tmp_path / "model", initializer_range=0.2)), dtype=dtype)
    differing = [
        ModelSource(other, corpus, HarvestSpec(sites=SITES)),
        ModelSource(spec, prepared(tmp_path / "fewer", spec, tokens=100), HarvestSpec(sites=SITES)),
        ModelSource(spec, corpus, HarvestSpec(sites=SITES[:2])),
        ModelSource(spec, corpus, HarvestSpec(sites=SITES, batch_tokens=64)),
    ]
    assert all(source.facts != facts for source in differing)


def test_a_context_longer_than_the_model_allows(tmp_path: Path) -> None:
    spec = ModelSpec(id=str(tiny_llama(tmp_path / "model")), dtype="float32")
    corpus = prepared(tmp_path, spec, context=65)
    with pytest.raises(UserError, match=r"^context: 65 is longer than this model allows; at most 64$"):
        ModelSource(spec, corpus, HarvestSpec(sites=SITES))
