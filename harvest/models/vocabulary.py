"""What each token stands for, byte by byte."""

import re
from typing import Any

_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_OF_CHARACTER = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + i): byte for i, byte in enumerate(_OTHERS)}
"""GPT-2's byte-level alphabet: printable Latin-1 is itself, the other 68 bytes are the characters from U+0100."""

END_OF_WORD = "</w>"


def token_bytes(tokenizer: Any) -> list[bytes]:
    """The bytes that each token id stands for, one entry an id (ids that are not used: no bytes).

    Byte-level tokenizers: exact, so a text's tokens join to the text (as normalised). SentencePiece: exact but for the
    space that it puts before a text. WordPiece drops spacing, and so do CLIP and GPT-1: best effort, with one space
    before or after each word. Special and other added tokens: their literal text.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    added: dict[int, Any] = tokenizer.added_tokens_decoder
    to_bytes = _rule(tokenizer, [token for token, id_ in vocabulary.items() if id_ not in added])
    table = [b""] * max(len(tokenizer), 1 + max(vocabulary.values(), default=-1))
    for token, id_ in vocabulary.items():
        table[id_] = added[id_].content.encode() if id_ in added else to_bytes(token)
    return table


def _rule(tokenizer: Any, tokens: list[str]) -> Any:
    """How this tokenizer writes bytes as text: told by its decoder, or by its tokens where it has none to ask."""
    if f"a{END_OF_WORD}" in tokens:
        return _word_ends_byte_level if _is_byte_level(tokens) else _word_ends
    decoder = repr(getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None))
    if "ByteLevel" in decoder:
        return _byte_level
    if "WordPiece" in decoder or any(token.startswith("##") and len(token) > 2 for token in tokens):
        return _wordpiece
    if "▁" in decoder or "Metaspace" in decoder or any("▁" in token for token in tokens):
        return _sentencepiece
    return _byte_level if _is_byte_level(tokens) else str.encode


def _is_byte_level(tokens: list[str]) -> bool:
    return all(character in BYTE_OF_CHARACTER for token in tokens for character in token)


def _byte_level(token: str) -> bytes:
    if _is_byte_level([token]):
        return bytes(BYTE_OF_CHARACTER[character] for character in token)
    return token.encode()


def _sentencepiece(token: str) -> bytes:
    if match := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", token):
        return bytes.fromhex(match[1])
    return token.replace("▁", " ").encode()


def _wordpiece(token: str) -> bytes:
    return token[2:].encode() if token.startswith("##") else b" " + token.encode()


def _word_ends(token: str) -> bytes:
    return token.removesuffix(END_OF_WORD).encode() + b" " * token.endswith(END_OF_WORD)


def _word_ends_byte_level(token: str) -> bytes:
    return _byte_level(token.removesuffix(END_OF_WORD)) + b" " * token.endswith(END_OF_WORD)
