"""Documents from files and datasets, against what was written into them."""

import csv
import gzip
import json
import lzma
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pytest
import tokenizers

from harvest.config import CorpusSpec, check_spec
from harvest.corpora.chat import plain_text
from harvest.corpora.corpus import Corpus
from harvest.corpora.documents import LeftOut
from harvest.corpora.prepare import prepare
from harvest.corpora.records import documents
from harvest.errors import UserError
from harvest.models.load import import_transformers
from tests.tiny import tiny_llama

RECORDS = [
    {"text": "First, a line.", "topic": "a", "id": 7},
    {"text": "Ünïcödé 🤗 <s>", "topic": None, "id": 8},
    {"text": "Third.", "topic": "b", "id": 7},
]


def write(path: Path, records: list[Any]) -> None:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif path.suffix == ".gz":
        with gzip.open(path, "wt") as file:
            file.write("".join(json.dumps(record) + "\n" for record in records))
    elif path.suffix == ".json":
        path.write_text(json.dumps(records))
    else:
        made = datasets.Dataset.from_list(records)
        made.to_csv(path) if path.suffix == ".csv" else made.to_parquet(path)


def read(**spec: Any) -> tuple[list[Any], LeftOut]:
    left_out = LeftOut()
    return list(documents(CorpusSpec(tokens=100, **spec), left_out, plain_text)), left_out


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Libraries try again or go on without what they were refused, so a test fails for the attempt itself."""
    tried = []

    def refused(*address: Any, **_: Any) -> None:
        tried.append(address)
        raise OSError("there is no network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    yield
    assert not tried


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.parquet"])
def test_every_kind_of_file_gives_its_records(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, RECORDS)
    found, left_out = read(files=str(tmp_path / name), labels=["topic", "id"])
    assert [document.text for document in found] == [record["text"] for record in RECORDS]
    assert [document.name for document in found] == [f"{name}:{number}" for number in range(3)]
    assert [document.labels for document in found] == [
        {"source": name, "topic": "a", "id": "7"},
        {"source": name, "id": "8"},
        {"source": name, "topic": "b", "id": "7"},
    ]
    assert not left_out.names


def test_text_files_are_a_document_each_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for name, text in {"b/2.txt": "two", "a/9.md": "nine", "b/10.txt": "ten"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "b/1.txt").write_bytes(b"\xff\xfe broken")
    (tmp_path / "b/3.txt").write_text(" \n")
    found, left_out = read(files=[str(tmp_path / "b/*.txt"), str(tmp_path / "**/*.md"), str(tmp_path / "b/2.txt")])
    assert [document.text for document in found] == ["ten", "two", "nine"]
    assert left_out.names == ["1.txt: documents that are not Unicode text", "3.txt: empty documents"]
    assert left_out.counts == {"documents that are not Unicode text": 1, "empty documents": 1}


def test_what_is_no_text_is_left_out_and_listed(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"text": "x"}, {"text": None}, {"text": ""}] + [{"text": None}] * 200)
    found, left_out = read(files=str(tmp_path / "a.jsonl"))
    assert [document.text for document in found] == ["x"]
    assert left_out.counts == {"documents that are not text": 201, "empty documents": 1}
    assert left_out.names[:2] == ["a.jsonl:1: documents that are not text", "a.jsonl:2: empty documents"]
    assert len(left_out.names) == 100


def test_classes_of_a_dataset_have_their_names(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "kind": datasets.ClassLabel(names=["ham", "spam"])})
    made = datasets.Dataset.from_dict({"text": ["x", "y", "z"], "kind": [1, 0, -1]}, features=features)
    made.to_parquet(tmp_path / "a.parquet")
    found, _ = read(files=str(tmp_path / "a.parquet"), labels=["kind"])
    assert [document.labels.get("kind") for document in found] == ["spam", "ham", None]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"files": "{}/none/*.txt"}, "files: {}/none/*.txt: no such file"),
        ({"files": "{}/a.pdf"}, "files: {}/a.pdf: cannot be read; known are .txt, .md, .jsonl, .json, .csv, .parquet"),
        ({"files": "{}/a.jsonl", "column": "body"}, "column: body: no such column in files: {}/a.jsonl; it has text"),
        ({"files": "{}/a.jsonl", "labels": ["mood"]}, "labels: mood: no such column in files: {}/a.jsonl; it has text"),
        ({"files": "{}/broken.json"}, "files: {}/broken.json: cannot be read: "),
        ({"files": "{}/broken.jsonl.gz"}, "files: {}/broken.jsonl.gz: cannot be read: "),
        ({"files": "{}/broken.csv"}, "files: {}/broken.csv: cannot be read: "),
        ({"files": "{}/broken.parquet"}, "files: {}/broken.parquet: cannot be read: "),
        ({"files": "{}/folder"}, "files: {}/folder: a folder; give {}/folder/*.txt"),
        ({"files": "{}/a.txt", "labels": ["mood"]}, "labels: mood: no such column in files: {}/a.txt; it has text"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, spec: dict[str, Any], message: str) -> None:
    write(tmp_path / "a.jsonl", RECORDS)
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken.json").write_text('[{"text": "x"},\n{"text": ')
    (tmp_path / "broken.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n' * 100)[:-12])
    (tmp_path / "broken.csv").write_text('text\n"never closed')
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError) as raised:
        read(**{key: value.format(tmp_path) if isinstance(value, str) else value for key, value in spec.items()})
    assert message.replace("{}", str(tmp_path)) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_texts_and_labels_stay_as_they_are_written(tmp_path: Path, kind: str) -> None:
    """Nothing is taken for a date, a number or a missing value."""
    texts = ["2020-01-02", "NA", "null", "1e5", 'a "quoted", line\nand another']
    records = [{"text": text, "label": label} for text, label in zip(texts, [*texts[:4], "007"], strict=True)]
    if kind == "csv":
        with (tmp_path / "a.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["text", "label"], *(record.values() for record in records), ["x" * 200_000]])
    else:
        write(tmp_path / f"a.{kind}", [*records, {"text": "x" * 200_000}])
    found, _ = read(files=str(tmp_path / f"a.{kind}"), labels=["label"])
    assert [document.text for document in found] == [*texts, "x" * 200_000]
    assert [document.labels.get("label") for document in found] == [*texts[:4], "007", None]


@pytest.mark.usefixtures("no_network")
def test_rows_that_do_not_parse_are_left_out_and_listed(tmp_path: Path) -> None:
    lines = ['{"text": "a"}', "{broken", "", "[1]", '{"text": "\\ud800"}', '{"text": "z", "topic": "\\ud800"}']
    (tmp_path / "a.jsonl").write_bytes("\n".join(lines).encode() + b'\n{"text": "\xff"}')
    (tmp_path / "b.jsonl").write_text("")
    found, left_out = read(files=[str(tmp_path / "*.jsonl")], labels=["topic"])
    assert [(document.text, document.labels) for document in found] == [
        ("a", {"source": "a.jsonl"}),
        ("z", {"source": "a.jsonl", "topic": "?"}),
    ]
    assert left_out.counts == {
        "rows that are not JSON objects": 2,
        "documents that are not Unicode text": 2,
        "files without records": 1,
    }
    assert left_out.names[0] == "a.jsonl:1: rows that are not JSON objects"


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst", ".xz", ".bz2"])
def test_compressed_files(tmp_path: Path, suffix: str) -> None:
    for name, content in {"a[1].txt": b"\xef\xbb\xbfwhole\r\n", "b.jsonl": b'{"text": "row"}'}.items():
        if suffix in (".xz", ""):
            (tmp_path / f"{name}{suffix}").write_bytes(lzma.compress(content) if suffix else content)
        else:
            with pyarrow.output_stream(str(tmp_path / f"{name}{suffix}")) as file:
                file.write(content)
    found, _ = read(files=[str(tmp_path / f"a[1].txt{suffix}"), str(tmp_path / "b.*")])
    assert [(document.name, document.text) for document in found] == [
        (f"a[1].txt{suffix}", "whole\r\n"),
        (f"b.jsonl{suffix}:0", "row"),
    ]


def test_a_dataset_is_a_stream_of_the_columns_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    features = datasets.Features(
        {
            "body": datasets.Value("string"),
            "kind": datasets.ClassLabel(names=["ham", "spam"]),
            "image": datasets.Image(),
        }
    )
    columns = {"body": ["x", None, "z"], "kind": [1, 0, -1], "image": [{"bytes": b"no image", "path": None}] * 3}
    made = datasets.Dataset.from_dict(columns, features=features).to_iterable_dataset()
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **options: asked.append((names, options)) or made)
    found, left_out = read(dataset="some/one", subset="s", split="test", revision="r", column="body", labels=["kind"])
    assert asked == [(("some/one", "s"), {"split": "test", "revision": "r", "streaming": True})]
    assert [(document.name, document.text, document.labels) for document in found] == [
        ("some/one:0", "x", {"kind": "spam"}),
        ("some/one:2", "z", {}),
    ]
    assert left_out.names == ["some/one:1: documents that are not text"]
    assert not datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    with pytest.raises(UserError, match="column: text: no such column in dataset some/one; it has body, kind, image"):
        read(dataset="some/one")


def test_a_dataset_is_never_a_folder_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some/one").mkdir(parents=True)
    with pytest.raises(UserError, match=r"dataset some/one: is on this machine; give its files as files: "):
        read(dataset="some/one")


def test_a_dataset_out_of_reach_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'some/dataset' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match=r"dataset some/dataset: .*hf download some/dataset --repo-type dataset"):
        read(dataset="some/dataset")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "give exactly one of documentation, dataset and files, not none"),
        ({"dataset": "a/b", "files": "x.txt"}, "not dataset and files"),
        ({"files": "x.txt", "split": "test"}, "subset, split and revision are for a dataset on the Hub"),
        ({"files": "x.txt", "minimum_characters": 5}, "minimum_characters is for documentation"),
        ({"documentation": ["tqdm"], "chat": True}, "column, labels and chat are for datasets and files"),
        ({"files": "x.txt", "labels": ["source"]}, "label sets must have different names, not source, source"),
        ({"files": "x.txt", "labels": ["a/b"]}, "labels.0"),
        ({"files": "x.txt", "bos": True}, "bos"),
    ],
)
def test_mistakes_in_a_spec(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        check_spec({"tokens": 10, **values}, CorpusSpec)
    assert message in str(raised.value)


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role not in ['user', 'assistant'] %}{{ raise_exception('no such role') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
)
CHATS: list[Any] = [
    [{"role": "user", "content": "Hello there"}, {"role": "assistant", "content": "Good day"}],
    [{"role": "wizard", "content": "x"}],
    [{"role": "user", "content": "Bye"}],
]


@pytest.mark.parametrize("bos", ["add", "keep", "drop"])
def test_conversations_go_through_the_models_own_template(tmp_path: Path, bos: str) -> None:
    tokenizer = import_transformers().AutoTokenizer.from_pretrained(tiny_llama(tmp_path / "model"))
    write(tmp_path / "chats.jsonl", [{"messages": chat} for chat in CHATS])
    spec = CorpusSpec(files=[str(tmp_path / "chats.jsonl")], chat=True, tokens=1000, context=64, bos=bos)
    with pytest.raises(UserError, match="chat: true: this model's tokenizer has no chat template"):
        prepare(spec, tokenizer, tmp_path / "corpus.zarr")
    tokenizer.chat_template = TEMPLATE
    facts = prepare(spec, tokenizer, tmp_path / "corpus.zarr")
    assert facts["left_out_names"] == ["chats.jsonl:1: documents that are not text"]
    corpus = Corpus(tmp_path / "corpus.zarr")
    tokens, keep, offsets = corpus.read_sequences(0, 2)
    whole = [tokenizer.apply_chat_template(CHATS[number], tokenize=True, return_dict=False) for number in (0, 2)]
    assert whole[0][0] == tokenizer.bos_token_id
    expected = [ids[1:] if bos == "drop" else ids for ids in whole]
    assert tokens.tolist() == [*expected[0], *expected[1]]
    assert offsets.tolist() == np.cumsum([0, *map(len, expected)]).tolist()
    beginning, end = tokens == tokenizer.bos_token_id, tokens == tokenizer.eos_token_id
    assert (keep == (~end & (True if bos == "keep" else ~beginning))).all()
    assert end.sum() == 3


def test_a_special_token_of_a_role_is_read_and_not_stored(tmp_path: Path) -> None:
    """As in Llama 3, whose tokenizer names only its beginning and its end among its special tokens."""
    transformers = import_transformers()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_llama(tmp_path / "model"))
    tokenizer.backend_tokenizer.add_special_tokens([tokenizers.AddedToken("<|role|>", special=True)])
    tokenizer.save_pretrained(tmp_path / "roles")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "roles")
    role = tokenizer.convert_tokens_to_ids("<|role|>")
    assert role not in tokenizer.all_special_ids
    tokenizer.chat_template = "{% for m in messages %}<|role|>{{ m.role }}: {{ m.content }}{% endfor %}"
    write(tmp_path / "chats.jsonl", [{"messages": chat} for chat in CHATS])
    prepare(
        CorpusSpec(files=str(tmp_path / "chats.jsonl"), chat=True, tokens=1000), tokenizer, tmp_path / "corpus.zarr"
    )
    corpus = Corpus(tmp_path / "corpus.zarr")
    tokens, keep, _ = corpus.read_sequences(0, len(corpus.sequences) - 1)
    assert (tokens == role).sum() == sum(map(len, CHATS))
    assert role not in corpus.read_columns(0, corpus.rows)["rows/token"]
    assert (~keep).sum() == sum(map(len, CHATS)) + len(CHATS)


def test_messages_of_any_shape_come_out_of_parquet_as_they_went_in(tmp_path: Path) -> None:
    """`datasets` stores what has no common type as JSON."""
    chat = [{"role": "user", "content": "Hello", "of": {"a": 1}}, {"role": "assistant", "content": "Yes", "of": [2]}]
    features = datasets.Features({"messages": datasets.List(datasets.Json())})
    datasets.Dataset.from_dict({"messages": [chat]}, features=features).to_parquet(tmp_path / "chats.parquet")
    spec = CorpusSpec(files=str(tmp_path / "chats.parquet"), chat=True, tokens=1000)
    assert [document.text for document in documents(spec, LeftOut(), json.dumps)] == [json.dumps(chat)]
