"""Prepares and harvests a short corpus, then a long one, in a process of its own; prints the peak after each, as JSON.

`python -m tests.harvest.flat_memory_case FOLDER`
"""

import itertools
import json
import sys
from pathlib import Path

import harvest.layout
from harvest.config import CorpusSpec, HarvestSpec, ModelSpec
from harvest.corpora.corpus import Corpus
from harvest.corpora.prepare import prepare
from harvest.memory import peak_bytes
from harvest.model_source import ModelSource
from harvest.models.load import load_tokenizer
from harvest.run import harvest as run
from tests.tiny import tiny_gpt2

SHORT, HARVESTED, LONG = 50_000, 250_000, 2_400_000
"""Tokens. Preparing is fast, so that it can be given a longer corpus than a model reads in a test."""


def main(folder: Path) -> None:
    # Small stores have small shards: here all stores have those of the long one.
    harvest.layout.SHARD_BYTES, harvest.layout.CHUNK_BYTES = 2**18, 2**16
    model = ModelSpec(id=str(tiny_gpt2(folder / "model")), dtype="float32")
    spec = HarvestSpec(sites=["layers.*.resid_post"])
    text = "A stream of text, which is read once, and no more of it is held than a few sequences are long. " * 5
    with (folder / "texts.jsonl").open("w") as file:
        file.writelines(json.dumps({"text": f"{number} {text}"}) + "\n" for number in range(LONG // 150))
    peaks: dict[str, list[int]] = {"prepare": [], "harvest": []}
    number = itertools.count()

    def prepared(tokens: int) -> Corpus:
        path = folder / f"corpus-{next(number)}.zarr"
        corpus = CorpusSpec(files=[str(folder / "texts.jsonl")], tokens=tokens, context=64)
        assert prepare(corpus, load_tokenizer(model), path)["rows"] == tokens
        peaks["prepare"].append(peak_bytes())
        return Corpus(path)

    def harvested(tokens: int) -> None:
        run(ModelSource(model, prepared(tokens), spec), folder / f"store-{next(number)}.zarr", None, {})
        peaks["harvest"].append(peak_bytes())

    harvested(SHORT)
    harvested(SHORT)  # what a second run takes in addition is no more of a long one's
    harvested(HARVESTED)
    prepared(LONG)
    print(json.dumps(peaks))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
