"""Tokens and the bytes they stand for."""

from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

from harvest.config import ModelSpec
from harvest.models.load import import_transformers, load_tokenizer
from harvest.models.vocabulary import token_bytes
from tests.tiny import TEXT, tiny_gpt2, tiny_llama


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_tokenizer(ModelSpec(id=str(tiny_gpt2(tmp_path_factory.mktemp("gpt2")))))


@given(st.text() | st.just(TEXT) | st.text("Ġ Ċ\n\tġ!~¡\xad\x00"))
def test_a_texts_tokens_join_to_the_text(gpt2: Any, text: str) -> None:
    table = token_bytes(gpt2)
    assert b"".join(table[id_] for id_ in gpt2(text)["input_ids"]) == text.encode()


def test_every_byte_has_a_token_and_special_tokens_are_literal(gpt2: Any, tmp_path_factory: Any) -> None:
    table = token_bytes(gpt2)
    assert len(table) == len(gpt2)
    assert {bytes([byte]) for byte in range(256)} <= set(table)
    assert table[0] == b"!"
    assert table[gpt2.eos_token_id] == b"<|endoftext|>"
    llama = load_tokenizer(ModelSpec(id=str(tiny_llama(tmp_path_factory.mktemp("llama")))))
    assert token_bytes(llama)[:2] == [b"<s>", b"</s>"]


def test_added_tokens_and_unused_ids(gpt2: Any) -> None:
    other = import_transformers().PreTrainedTokenizerFast(tokenizer_object=gpt2.backend_tokenizer)
    other.add_tokens(["Ġnot byte-level é"])
    table = token_bytes(other)
    assert table[-1] == "Ġnot byte-level é".encode()

    sparse = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 3}, unk_token="a"))
    assert token_bytes(import_transformers().PreTrainedTokenizerFast(tokenizer_object=sparse)) == [b"a", b"", b"", b"b"]


def test_sentencepiece_style() -> None:
    vocabulary = {"<unk>": 0, "▁": 1, "h": 2, "i": 3, "▁h": 4, "▁hi": 5} | {
        f"<0x{byte:02X}>": 6 + byte for byte in range(256)
    }
    made = tokenizers.Tokenizer(
        models.BPE(vocabulary, [("▁", "h"), ("▁h", "i")], unk_token="<unk>", byte_fallback=True)
    )
    made.normalizer = normalizers.Replace(" ", "▁")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = import_transformers().PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")
    table = token_bytes(tokenizer)
    text = " hi\n hi é"
    assert tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])[:2] == ["▁hi", "<0x0A>"]
    assert b"".join(table[id_] for id_ in tokenizer(text)["input_ids"]) == text.encode()


def test_wordpiece_style() -> None:
    made = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "read": 1, "##ing": 2, "café": 3}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.WordPiece()
    tokenizer = import_transformers().PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")
    table = token_bytes(tokenizer)
    assert b"".join(table[id_] for id_ in tokenizer("reading café ?")["input_ids"]) == " reading café[UNK]".encode()
