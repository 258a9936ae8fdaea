"""Labels of tokens, against every match found by hand."""

import re
from pathlib import Path

import numpy as np
import pytest

from harvest.config import CorpusSpec
from harvest.corpora.corpus import Corpus
from harvest.corpora.lexicon import Lexicon
from harvest.corpora.prepare import prepare
from harvest.errors import UserError
from harvest.models.load import import_transformers
from tests.tiny import TEXT, tiny_gpt2, tiny_llama

LEXICON = """
country: [france, Norway, New York City]
place: [New York, paris, norway]
number: ['/[0-9]+/', '/two|hundreds?/']
"""
WORDS = {
    "country": r"(?i:france|norway|new york city)",
    "place": r"(?i:new york|paris|norway)",
    "number": r"[0-9]+|two|hundreds?",
}
TEXTS = [
    "France, not Francesca; NORWAY and norways. New York City or new York? Two two hundred 1000 x2 hundredth",
    TEXT,
    "ünder Norway. 🤗Paris🤗 Ελληνικά 12你好",
    "nothing at all",
]


def by_hand(text: str) -> dict[int, str]:
    """Place of each match's last character -> label; the first label counts."""
    found: dict[int, str] = {}
    for label, words in reversed(WORDS.items()):
        found |= {match.end() - 1: label for match in re.finditer(rf"\b(?:{words})\b", text)}
    return found


@pytest.mark.parametrize("maker", [tiny_gpt2, tiny_llama])
@pytest.mark.parametrize("pack", [True, False])
def test_a_match_labels_the_token_that_ends_it(tmp_path: Path, maker: object, pack: bool) -> None:
    tokenizer = import_transformers().AutoTokenizer.from_pretrained(maker(tmp_path / "model"))  # type: ignore[operator]
    (tmp_path / "words.yaml").write_text(LEXICON)
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.txt").write_text(text)
    lexicons = {"words": str(tmp_path / "words.yaml")}
    spec = CorpusSpec(files=[str(tmp_path / "*.txt")], lexicons=lexicons, tokens=5000, context=16, pack=pack)
    prepare(spec, tokenizer, tmp_path / "corpus.zarr")
    corpus = Corpus(tmp_path / "corpus.zarr")
    assert corpus.labels["words"] == list(WORDS)
    columns = corpus.read_columns(0, corpus.rows)
    expected: list[int] = []
    for text in TEXTS:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        labels = [-1] * len(encoded["input_ids"])
        for place, label in by_hand(text).items():
            last = max(t for t, (start, stop) in enumerate(encoded["offset_mapping"]) if start <= place < stop)
            labels[last] = list(WORDS).index(label)
        expected += labels
    assert columns["rows/labels/words"].tolist() == expected
    assert {0, 1, 2} <= set(expected)
    assert corpus.labels["source"] == [f"{number}.txt" for number in range(4)]


def test_a_regular_expression_that_matches_nothing_labels_nothing() -> None:
    lexicon = Lexicon({"x": [re.compile("a*")]})
    assert lexicon.label("baa", np.array([[0, 1], [1, 3]])).tolist() == [-1, 0]
    assert lexicon.label("", np.zeros((0, 2), np.int64)).tolist() == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a, b]", "must map each label to its words"),
        ("", "must map each label to its words"),
        ("a: b", "a: must be a list of words"),
        ("a: [1]", "a: must be a list of words"),
        ("a: ['/(/']", "a: /(/: is no regular expression"),
        ("a: ['/b)(c/']", "a: /b)(c/: is no regular expression"),
        ("a: ['/(?i)b/']", "write (?i:…) to ignore case"),
        ("a: [", "is not YAML"),
    ],
)
def test_mistakes_name_the_file_and_the_label(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "words.yaml").write_text(text)
    with pytest.raises(UserError) as raised:
        Lexicon.read("lexicons.words", str(tmp_path / "words.yaml"))
    assert str(raised.value).startswith(f"lexicons.words: {tmp_path / 'words.yaml'}: ")
    assert message in str(raised.value)
    with pytest.raises(UserError, match=r"lexicons.words: nowhere.yaml: cannot be read"):
        Lexicon.read("lexicons.words", "nowhere.yaml")
