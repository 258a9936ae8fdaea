"""A prepared corpus, compared with a plain reconstruction from its documents."""

import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from harvest.config import CorpusSpec
from harvest.corpora import documentation, prepare, writer
from harvest.corpora.corpus import Corpus
from harvest.corpora.documents import Document
from harvest.errors import UserError

TEXTS = [
    "The quick brown fox jumps over the lazy dog.\n\n    indented code >>> x = 1\n",
    "Ünïcödé, 日本語のテキスト, العربية, 👩‍👩‍👧‍👦 family 🎉, NUL \0 and tab\t.",
    "A tokenizer writes <s> before and </s> after, and <|endoftext|> between.",
    "!",
    "  leading spaces; " + "many words again and again " * 20,
]
DOCUMENTS = [
    Document(text, {} if i == 3 else {"package": f"package{i % 3}"}, f"package.é{i}") for i, text in enumerate(TEXTS)
]


def byte_level(bos: bool) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 300 tokens. With `bos`, `<s>` is id 0 and added by itself; without, id 0 is `!`."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|endoftext|>"] if bos else []
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    inner.train_from_iterator(TEXTS, trainer)
    if not bos:
        return PreTrainedTokenizerFast(tokenizer_object=inner)
    ends = [("<s>", 0), ("</s>", 1)]
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<s>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


TOKENIZERS = {bos: byte_level(bos) for bos in (True, False)}


def write(folder, documents, bos, context=16, tokens=10**6, spec=None):
    """Prepare `documents` in place of the installed packages'."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documentation, "documents", lambda spec, left_out: iter(documents))
        wanted = CorpusSpec(documentation="installed", tokens=tokens, context=context, **(spec or {}))
        facts = prepare.prepare(wanted, TOKENIZERS[bos], Path(folder) / "corpus.zarr")
    return facts, Corpus(Path(folder) / "corpus.zarr")


def plain_ids(text, bos):
    """The text's ids from a tokenizer that knows no special token at all."""
    inner = tokenizers.Tokenizer.from_str(TOKENIZERS[bos].backend_tokenizer.to_str())
    inner.encode_special_tokens = True
    return inner.encode(text, add_special_tokens=False).ids


def expected(documents, bos, context, budget):
    """One token at a time: sequences of (token, keep, document, position, label)."""
    sequences, labels, kept = [], [], 0
    for number, document in enumerate(documents):
        ids = plain_ids(document.text, bos)[: budget - kept]
        label = document.labels.get("package")
        if ids and label is not None and label not in labels:
            labels.append(label)
        for position, token in enumerate(ids):
            if position == 0 or len(sequences[-1]) == context:
                sequences.append([(0, False, number, -1, label)] if bos else [])
            sequences[-1].append((token, True, number, position, label))
        kept += len(ids)
        if kept == budget:
            break
    return sequences, labels


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("context", [2, 7, 16, 1000])
@pytest.mark.parametrize("budget", [1, 37, 100, 10**6])
def test_equals_a_reconstruction_token_by_token(tmp_path, bos, context, budget):
    facts, corpus = write(tmp_path, DOCUMENTS, bos, context, budget)
    sequences, labels = expected(DOCUMENTS, bos, context, budget)
    rows = [token for sequence in sequences for token in sequence if token[1]]
    assert len(rows) == budget or budget == 10**6
    assert facts["rows"] == corpus.rows == len(rows)
    assert facts["complete"] == (budget < 10**6)
    assert facts["documents"] == len({token[2] for token in rows})
    assert facts["tokens"] == sum(map(len, sequences))
    assert facts["sequences"] == len(sequences)
    assert corpus.longest == max(map(len, sequences)) <= context
    assert corpus.labels == {"package": labels}
    tokens, keep, offsets = corpus.read_sequences(0, len(sequences))
    assert [list(zip(tokens[a:b], keep[a:b], strict=True)) for a, b in pairwise(offsets)] == [
        [token[:2] for token in sequence] for sequence in sequences
    ]
    columns = corpus.read_columns(0, corpus.rows)
    assert {values.dtype for values in columns.values()} == {np.dtype("int32")}
    numbers = {None: -1} | {label: number for number, label in enumerate(labels)}
    assert columns["rows/token"].tolist() == [token[0] for token in rows]
    assert columns["rows/document"].tolist() == [token[2] for token in rows]
    assert columns["rows/position"].tolist() == [token[3] for token in rows]
    assert columns["rows/labels/package"].tolist() == [numbers[token[4]] for token in rows]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """With and without a beginning-of-sequence token, over several Zarr chunks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "CHUNK_BYTES", 128)
        return {bos: write(tmp_path_factory.mktemp("corpus"), DOCUMENTS, bos)[1] for bos in (True, False)}


@settings(deadline=None, max_examples=50)
@given(bos=st.booleans(), data=st.data())
def test_any_range_of_rows_equals_the_same_part_of_all(corpora, bos, data):
    corpus = corpora[bos]
    start = data.draw(st.integers(0, corpus.rows))
    stop = data.draw(st.integers(start, corpus.rows))
    whole, part = corpus.read_columns(0, corpus.rows), corpus.read_columns(start, stop)
    assert whole.keys() == part.keys()
    for name, values in part.items():
        np.testing.assert_array_equal(values, whole[name][start:stop])


@settings(deadline=None, max_examples=50)
@given(bos=st.booleans(), data=st.data())
def test_sequences_of_a_range_are_the_fewest_that_hold_it(corpora, bos, data):
    corpus = corpora[bos]
    start = data.draw(st.integers(0, corpus.rows - 1))
    stop = data.draw(st.integers(start + 1, corpus.rows))
    first, last = corpus.sequences_of(start, stop)
    keep = corpus.group["keep"][:]
    sequence_of_token = np.repeat(np.arange(len(corpus.sequences) - 1), np.diff(corpus.sequences))
    assert sorted(set(sequence_of_token[keep][start:stop])) == list(range(first, last))
    assert corpus.row_offsets[first] == np.count_nonzero(keep[: corpus.sequences[first]])


@pytest.mark.parametrize("bos", [True, False])
def test_kept_tokens_of_a_document_give_its_text_back(corpora, bos):
    corpus = corpora[bos]
    columns = corpus.read_columns(0, corpus.rows)
    vocabulary = corpus.vocabulary_tables()
    content, offsets = vocabulary["vocabulary/bytes"].tobytes(), vocabulary["vocabulary/offsets"]
    assert len(offsets) == len(TOKENIZERS[bos]) + 1
    for number, document in enumerate(DOCUMENTS):
        ids = columns["rows/token"][columns["rows/document"] == number]
        assert TOKENIZERS[bos].decode(ids, clean_up_tokenization_spaces=False) == document.text
        assert b"".join(content[offsets[i] : offsets[i + 1]] for i in ids).decode() == document.text
        assert corpus.document_name(number) == document.name


def test_text_that_spells_a_special_token_is_text(corpora):
    kept = corpora[True].read_columns(0, corpora[True].rows)["rows/token"]
    assert not set(kept.tolist()) & set(TOKENIZERS[True].all_special_ids)
    assert "<s>" in TEXTS[2]


def test_beginning_of_sequence_stands_before_each_sequence_and_is_not_kept(corpora):
    corpus = corpora[True]
    starts = corpus.sequences[:-1]
    tokens, keep = corpus.group["tokens"][:], corpus.group["keep"][:]
    assert (tokens[starts] == 0).all()
    assert np.flatnonzero(~keep).tolist() == starts.tolist()
    assert (corpus.group["position"][:][starts] == -1).all()


def test_token_id_zero_is_a_token_like_any_other(corpora):
    corpus = corpora[False]
    assert TOKENIZERS[False].convert_tokens_to_ids("!") == 0
    columns = corpus.read_columns(0, corpus.rows)
    assert columns["rows/token"][columns["rows/document"] == 3].tolist() == [0]
    assert corpus.group["keep"][:].all()


@settings(deadline=None, max_examples=20)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), min_size=1, max_size=6),
    bos=st.booleans(),
    context=st.integers(2, 12),
    tokens=st.integers(1, 120),
)
def test_any_text_survives_within_the_budget(texts, bos, context, tokens):
    documents = [Document(text, {"package": "p"}, f"p.{number}") for number, text in enumerate(texts)]
    whole = "".join(texts).encode()
    with tempfile.TemporaryDirectory() as folder:
        if not whole:
            with pytest.raises(UserError, match="gives no text"):
                write(folder, documents, bos, context, tokens)
            return
        facts, corpus = write(folder, documents, bos, context, tokens)
        ids = corpus.read_columns(0, corpus.rows)["rows/token"]
        table = corpus.vocabulary_tables()
    pieces = np.split(table["vocabulary/bytes"], table["vocabulary/offsets"][1:-1])
    read = b"".join(pieces[i].tobytes() for i in ids)
    assert corpus.rows == min(tokens, sum(len(plain_ids(text, bos)) for text in texts))
    assert whole.startswith(read)
    assert facts["complete"] == (corpus.rows == tokens)
    assert facts["complete"] or (
        read == whole and facts["left_out"].get("documents without a token", 0) == texts.count("")
    )


def test_same_bytes_and_fingerprint_whatever_the_chunks(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    first, one = write(tmp_path / "a", DOCUMENTS, True)
    second, _ = write(tmp_path / "b", DOCUMENTS, True)
    assert first == second
    assert one.facts == first
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path / "b") for path in (tmp_path / "b").rglob("*") if path.is_file())
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    monkeypatch.setattr(writer, "CHUNK_BYTES", 64)
    assert write(tmp_path / "c", DOCUMENTS, True)[0] == first


@pytest.mark.parametrize("change", ["text", "label", "name", "context", "order"])
def test_any_change_changes_the_fingerprint(tmp_path, change):
    first = write(tmp_path / "a", DOCUMENTS, True)[0]["fingerprint"]
    documents, one = list(DOCUMENTS), DOCUMENTS[0]
    if change == "text":
        documents[0] = Document("the" + one.text[3:], one.labels, one.name)
    elif change == "label":
        documents[0] = Document(one.text, {"package": "renamed"}, one.name)
    elif change == "name":
        documents[0] = Document(one.text, one.labels, "package.éX")
    elif change == "order":
        documents.reverse()
    assert write(tmp_path / "b", documents, True, 15 if change == "context" else 16)[0]["fingerprint"] != first


def test_replaces_a_corpus_and_nothing_else(tmp_path):
    write(tmp_path, DOCUMENTS, True)
    facts, corpus = write(tmp_path, DOCUMENTS[:1], True)
    assert corpus.fingerprint == facts["fingerprint"]
    assert facts["documents"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.zarr"]

    mine = tmp_path / "mine" / "corpus.zarr"
    mine.mkdir(parents=True)
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="exists and is no corpus"):
        write(mine.parent, DOCUMENTS, True)
    assert (mine / "thesis.txt").read_text() == "years of work"


def test_a_failure_leaves_the_old_corpus_and_no_litter(tmp_path):
    facts, _ = write(tmp_path, DOCUMENTS, True)

    def broken():
        yield DOCUMENTS[0]
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write(tmp_path, broken(), True)
    assert Corpus(tmp_path / "corpus.zarr").facts == facts
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.zarr"]


def test_what_is_no_corpus_is_refused(tmp_path):
    with pytest.raises(UserError, match="no Zarr v3 group"):
        Corpus(tmp_path / "missing")
    (tmp_path / "zarr.json").write_text("{")
    with pytest.raises(UserError, match="no Zarr v3 group"):
        Corpus(tmp_path)
    zarr.create_group(tmp_path / "store", attributes={"schema": 1})
    with pytest.raises(UserError, match="has schema 1, this version reads 'corpus 1'"):
        Corpus(tmp_path / "store")


def test_installed_documentation_from_end_to_end(tmp_path):
    spec = CorpusSpec(documentation=["tqdm"], tokens=2000, context=64)
    facts = prepare.prepare(spec, TOKENIZERS[True], tmp_path / "corpus.zarr")
    corpus = Corpus(tmp_path / "corpus.zarr")
    assert corpus.rows == 2000
    assert facts["spec"] == spec.model_dump(mode="json")
    assert corpus.labels == {"package": ["tqdm"]}
    assert corpus.document_name(0).startswith("tqdm.")


def packed(documents, bos, context, budget):
    """One token at a time: sequences of (token, keep, document, position); `bos` is what becomes of the beginning."""
    sequences, kept = [], 0

    def put(token, keep, number, position):
        nonlocal kept
        if kept < budget:
            sequences[-1].append((token, keep, number, position))
            kept += keep

    for number, document in enumerate(documents):
        for position, token in enumerate(plain_ids(document.text, True)):
            room = context - len(sequences[-1]) if sequences else 0
            beginning = bos != "drop" and (position == 0 or room == 0)
            if kept < budget and room < 1 + beginning:
                sequences.append([])
                beginning = bos != "drop"
            if beginning:
                put(0, bos == "keep", number, -1)
            put(token, True, number, position)
    return sequences


@settings(max_examples=60)
@given(
    texts=st.lists(st.text("ab <s>.🤗\n", max_size=30), min_size=1, max_size=6),
    context=st.integers(2, 20),
    budget=st.integers(1, 120),
    bos=st.sampled_from(["add", "keep", "drop"]),
)
def test_packed_sequences_are_full_and_lose_nothing(texts, context, budget, bos):
    documents = [Document(text, {"package": "p"}, f"{i}") for i, text in enumerate(texts) if plain_ids(text, True)]
    if not documents:
        return
    sequences = packed(documents, bos, context, budget)
    with tempfile.TemporaryDirectory() as folder:
        facts, corpus = write(folder, documents, True, context, budget, {"pack": True, "bos": bos})
        tokens, keep, offsets = corpus.read_sequences(0, len(sequences))
        columns = corpus.read_columns(0, corpus.rows)
    flat = [token for sequence in sequences for token in sequence]
    rows = [token for token in flat if token[1]]
    assert list(zip(tokens, keep, strict=True)) == [token[:2] for token in flat]
    assert np.diff(offsets).tolist() == [len(sequence) for sequence in sequences]
    assert facts["rows"] == corpus.rows == len(rows) <= budget
    assert facts["complete"] == (len(rows) == budget)
    assert facts["sequences"] == len(sequences)
    assert corpus.longest == max(map(len, sequences)) <= context
    assert all(len(sequence) >= context - (bos != "drop") for sequence in sequences[:-1])
    assert columns["rows/token"].tolist() == [token[0] for token in rows]
    assert columns["rows/document"].tolist() == [token[2] for token in rows]
    assert columns["rows/position"].tolist() == [token[3] for token in rows]
    assert columns["rows/labels/package"].tolist() == [min(token[3], 0) for token in rows]


@pytest.mark.parametrize("bos", ["keep", "drop"])
def test_a_beginning_that_is_kept_is_a_row_and_one_that_is_dropped_is_nowhere(tmp_path, bos):
    _, corpus = write(tmp_path, DOCUMENTS, True, spec={"bos": bos})
    columns = corpus.read_columns(0, corpus.rows)
    beginnings = columns["rows/token"] == 0
    assert beginnings.sum() == (corpus.facts["sequences"] if bos == "keep" else 0)
    assert (columns["rows/position"][beginnings] == -1).all()
    assert corpus.facts["tokens"] == corpus.rows
