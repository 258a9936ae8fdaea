"""Turn a corpus into token sequences with labels; `harvest.corpora.corpus` says how they lie on disk and reads them."""

import pathlib
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import zarr

from harvest.config import CorpusSpec
from harvest.corpora import documentation, records
from harvest.corpora.chat import Conversations, plain_text
from harvest.corpora.corpus import Corpus
from harvest.corpora.documents import Document, LeftOut
from harvest.corpora.folder import write_whole
from harvest.corpora.lexicon import Lexicon
from harvest.corpora.writer import CorpusWriter, Tokens
from harvest.errors import UserError
from harvest.models.vocabulary import token_bytes
from harvest.progress import progress

DOCUMENTS_IN_A_BATCH = 256


def prepare(spec: CorpusSpec, tokenizer: Any, output: pathlib.Path) -> dict[str, Any]:
    """Write the corpus that `spec` describes to the folder `output` and return its facts (the group's attributes).

    Documents are cut into sequences of at most `spec.context` tokens until exactly `spec.tokens` are kept. The
    tokenizer's beginning-of-sequence token starts every sequence, as `spec.bos` says; no other special token is added,
    and text that spells one (`</s>`) is read as text, but for the chat template's own.
    Memory holds one chunk per array, whatever the corpus's length. `output` is replaced once the new one is complete.
    Raises `UserError` where no token is found, or where `output` is something other than a corpus.
    """
    return write_whole(output, lambda beside: _write(spec, tokenizer, beside))


def _write(spec: CorpusSpec, tokenizer: Any, path: pathlib.Path) -> dict[str, Any]:
    lexicons = {name: Lexicon.read(f"lexicons.{name}", file) for name, file in spec.lexicons.items()}
    if lexicons and not tokenizer.is_fast:
        raise UserError(
            "lexicons: this model's tokenizer does not say where in the text its tokens are (it is not fast)"
        )
    bos: int | None = tokenizer.bos_token_id
    writer = CorpusWriter(zarr.create_group(path), spec, None if spec.bos == "drop" else bos, lexicons)
    left_out = LeftOut()
    with progress(spec.tokens, "corpus", "token") as bar:
        for document, tokens in _tokenised(_documents(spec, tokenizer, left_out), spec, tokenizer, lexicons):
            if tokens.special.all():
                left_out.add("documents without a token", document.name)
                continue
            bar.update(writer.add(document, tokens))
            if writer.left == 0:
                break
    if writer.rows == 0:
        raise UserError(f"{_source(spec)} gives no text ({left_out})")
    facts = {
        "schema": Corpus.schema,
        "spec": spec.model_dump(mode="json"),
        "complete": writer.left == 0,  # false: the corpus ended before the budget was reached
        "left_out": dict(sorted(left_out.counts.items())),
        "left_out_names": left_out.names,
        **writer.finish(token_bytes(tokenizer)),
    }
    writer.group.update_attributes(facts)
    return facts


def _documents(spec: CorpusSpec, tokenizer: Any, left_out: LeftOut) -> Iterator[Document]:
    if spec.documentation is not None:
        return documentation.documents(spec, left_out)
    return records.documents(spec, left_out, Conversations(tokenizer) if spec.chat else plain_text)


def _source(spec: CorpusSpec) -> str:
    key = next(key for key in ("documentation", "dataset", "files") if getattr(spec, key) is not None)
    return f"{key}: {getattr(spec, key)!r}"


def _tokenised(
    documents: Iterator[Document], spec: CorpusSpec, tokenizer: Any, lexicons: dict[str, Lexicon]
) -> Iterator[tuple[Document, Tokens]]:
    special = _special_ids(tokenizer) if spec.chat else []
    while batch := list(islice(documents, DOCUMENTS_IN_A_BATCH)):
        texts = [document.text for document in batch]
        # Documentation of language models is full of `<s>` and `<|endoftext|>`: as special tokens they would be
        # control characters in the middle of a text. A chat template writes those that it means.
        encoded = tokenizer(
            texts,
            add_special_tokens=False,
            split_special_tokens=not spec.chat,
            return_offsets_mapping=bool(lexicons),
            verbose=False,
        )
        for number, document in enumerate(batch):
            ids = np.array(encoded["input_ids"][number], np.int32)
            offsets = np.array(encoded["offset_mapping"][number] if lexicons else [], np.int64).reshape(-1, 2)
            labels = {name: lexicon.label(document.text, offsets) for name, lexicon in lexicons.items()}
            # The template may write the beginning itself; `bos` alone says whether there is one.
            first = int(spec.chat and len(ids) > 0 and ids[0] == tokenizer.bos_token_id)
            labels = {name: values[first:] for name, values in labels.items()}
            yield document, Tokens(ids[first:], np.isin(ids[first:], special), labels)


def _special_ids(tokenizer: Any) -> list[int]:
    """All that are special: a tokenizer with a token for each role often names only its beginning and end as such."""
    added = tokenizer.added_tokens_decoder
    return sorted({*tokenizer.all_special_ids, *(number for number, token in added.items() if token.special)})
