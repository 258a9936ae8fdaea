import itertools
import json
import pathlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analyze.activity import measure
from analyze.examples import AFTER, BEFORE, choose, join_tokens
from tests.texts import make_dictionary, make_store, words


def test_examples_show_their_document_and_nothing_else(tmp_path: pathlib.Path) -> None:
    source = words()
    store = make_store(source, tmp_path)
    dictionary = make_dictionary(tmp_path, store, ["in"], ["in"])
    with torch.no_grad():
        dense = dictionary.encode(source.sites["in"]).dense().numpy()
    measure(tmp_path, store.path, tmp_path)
    found = json.loads((tmp_path / "examples.json").read_text())["latents"]
    assert {entry["latent"] for entry in found} == set(np.flatnonzero((dense > 0).any(0)).tolist())
    firsts = np.searchsorted(source.document, np.arange(len(source.documents)))
    cut = 0
    for entry in found:
        assert entry["examples"]
        for example in entry["examples"]:
            row, latent = example["row"], entry["latent"]
            assert example["activation"] == pytest.approx(float(dense[row, latent]), rel=1e-5)
            document = int(source.document[row])
            assert example["labels"] == {"language": ("nynorsk", "deutsch")[document % 2]}
            tokens, at = source.documents[document], row - int(firsts[document])
            low, high = max(0, at - BEFORE), min(len(tokens), at + AFTER + 1)
            cut += low == 0 or high == len(tokens)
            text = b"".join(tokens[low:high]).decode(errors="replace")
            assert "".join(text for text, _ in example["tokens"]) == text
            shown, which = join_tokens(tokens[low:high])
            assert example["peak"] == which[at - low]
            wanted = np.zeros(len(shown))
            np.maximum.at(wanted, which, dense[row - at + low : row - at + high, latent])
            assert [activation for _, activation in example["tokens"]] == pytest.approx(wanted, rel=1e-3)
    assert cut > 20  # borders were seen


@given(st.text(max_size=20), st.data())
def test_joined_tokens_give_the_text_back(text: str, data: st.DataObject) -> None:
    written = text.encode(errors="ignore")
    cuts = sorted(data.draw(st.sets(st.integers(0, len(written)))) | {0, len(written)})
    pieces = [written[a:b] for a, b in itertools.pairwise(cuts)]
    texts, which = join_tokens(pieces)
    assert "".join(texts) == written.decode()
    assert len(which) == len(pieces)
    joined = [b"".join(p for p, at in zip(pieces, which, strict=True) if at == i) for i in range(len(texts))]
    assert [piece.decode() for piece in joined] == texts


@given(st.lists(st.binary(max_size=3), max_size=8))
def test_bytes_that_are_no_text_are_replaced(pieces: list[bytes]) -> None:
    texts, which = join_tokens(pieces)
    assert "".join(texts) == b"".join(pieces).decode(errors="replace")
    assert which == sorted(which)
    assert set(which) == set(range(len(texts)))


def test_a_choice_of_latents_is_even_and_alive() -> None:
    firing_F = np.array([0, 5, 9, 0, 9, 1])
    assert choose(firing_F, 10).tolist() == [2, 4, 1, 5]
    assert choose(firing_F, 2).tolist() == [2, 5]
    assert choose(np.zeros(4, np.int64), 2).tolist() == []
