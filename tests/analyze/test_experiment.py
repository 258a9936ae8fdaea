"""The whole config: dictionaries that are trained together."""

import json
from pathlib import Path
from typing import Any

import pytest

from analyze.experiment import Experiment, load_experiment
from harvest.errors import UserError


def experiment_of(**changes: Any) -> Experiment:
    """Dictionaries `alone`, `first` and `second`; the last two are trained together, and `changes` are the last's."""
    bench = {"bench": {"features": 20, "sites": {"p": 16, "r": 16}, "rows": 4000, "sparsity": 0.9, "interference": 0.3}}
    common = {"harvest": "bench", "reads": ["p"], "latents": 64, "sparsity": {"topk": {"l0": 2}}, "tokens": 8000}
    config = {
        "harvests": {"bench": bench, "other": bench},
        "dictionaries": {
            "alone": common,
            "first": {**common, "together": "pair"},
            "second": {**common, "together": "pair", **changes},
        },
    }
    return load_experiment(config, "configs/mine.yaml")


def test_who_is_trained_with_whom() -> None:
    experiment = experiment_of(latents=128, reads=["r"], sparsity={"relu": {"l0": 2}})
    assert experiment.passes == {"pair": ["first", "second"]}
    assert experiment.trained_alone == ["alone"]
    # A pass is no fact of a dictionary: its spec, and so its checkpoints, are those of one that is trained alone.
    assert experiment.dictionary_text("first") == experiment.dictionary_text("alone")


def with_corpus(**corpus: Any) -> Experiment:
    dictionary = {"harvest": "h", "reads": ["pooled"], "latents": 64, "sparsity": {"topk": {"l0": 2}}, "tokens": 8000}
    config = {
        "models": {"m": {"id": "somewhere"}},
        "corpora": {"c": corpus},
        "harvests": {"h": {"model": "m", "corpus": "c", "sites": ["pooled"], "rows": "images"}},
        "dictionaries": {"d": dictionary},
    }
    return load_experiment(config, "configs/mine.yaml")


def test_a_corpus_of_text_or_of_images(tmp_path: Path) -> None:
    assert json.loads(with_corpus(digits=True, images="1k").corpus_text("h")) == {"digits": True, "images": 1000}
    assert json.loads(with_corpus(documentation="installed", tokens=9).corpus_text("h"))["tokens"] == 9
    (tmp_path / "cat").mkdir()
    found = with_corpus(folder=str(tmp_path), images=3).corpus_files("h")
    assert found == [str(tmp_path), str(tmp_path / "cat")]
    (tmp_path / "a.parquet").touch()
    found = with_corpus(files=str(tmp_path / "*.parquet"), images=3).corpus_files("h")
    assert found == [str(tmp_path / "a.parquet")]


def test_whose_tokens_a_dictionarys_directions_are_read_in() -> None:
    assert with_corpus(documentation="installed", tokens=9).lens_harvest("d") == "h"
    assert with_corpus(digits=True, images=9).lens_harvest("d") is None
    assert experiment_of().lens_harvest("first") is None  # the bench has no model
    harvest = {"model": "m", "corpus": "c", "sites": ["embed"]}
    dictionary = {"harvest": ["a", "b"], "reads": ["b/embed", "a/embed"], "latents": 64, "tokens": 8000}
    config = {
        "models": {"m": {"id": "somewhere"}},
        "corpora": {"c": {"documentation": "installed", "tokens": 9}},
        "harvests": {"a": harvest, "b": harvest},
        "dictionaries": {"d": {**dictionary, "sparsity": {"topk": {"l0": 2}}}},
    }
    assert load_experiment(config, "configs/mine.yaml").lens_harvest("d") == "a"


@pytest.mark.parametrize(
    ("corpus", "says"),
    [
        ({"images": 3, "digits": True, "token": 3}, "^corpora.c.token: unknown key; there are images, folder, files"),
        ({"tokens": 3, "files": "x", "image": 3}, "^corpora.c.image: unknown key; there are documentation"),
        ({"images": "many", "digits": True}, '^corpora.c.images: "many": Input should be a valid integer'),
        ({"images": 3}, "^corpora.c: .* give exactly one of folder, files, dataset and digits, not none"),
    ],
)
def test_mistakes_in_a_corpus(corpus: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        with_corpus(**corpus)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tokens": 9000}, "dictionaries.second.tokens: 9000: trained together with first, which has 8000"),
        ({"batch": 512}, "dictionaries.second.batch: 512: .* which has 4096"),
        ({"seed": 1}, "dictionaries.second.seed: 1: .* which has 0"),
        ({"holdout": 0.2}, "dictionaries.second.holdout: 0.2: .* which has 0.05"),
        ({"harvest": "other"}, "dictionaries.second.harvest: other: .* which has bench"),
    ],
)
def test_what_is_trained_together_must_see_the_same_rows(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        experiment_of(**changes)


def test_a_corpus_is_made_again_where_a_file_of_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there; what is not is said by the command that needs it."""
    monkeypatch.chdir(tmp_path)
    for name in ("texts/b.txt", "texts/a.txt", "words.yaml", "texts/c.md"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("text")
    local = {"files": ["texts/*.txt", "absent.txt"], "lexicons": {"words": "words.yaml"}, "tokens": 10}
    dictionary = {"harvest": "local", "reads": ["embed"], "latents": 8, "sparsity": {"topk": {"l0": 2}}, "tokens": 10}
    config = {
        "models": {"m": {"id": "m"}},
        "corpora": {"local": local, "hub": {"dataset": "some/one", "tokens": 10}},
        "harvests": {name: {"model": "m", "corpus": name, "sites": ["embed"]} for name in ("local", "hub")},
        "dictionaries": {"sae": dictionary},
    }
    experiment = load_experiment(config, "configs/mine.yaml")
    assert experiment.corpus_files("local") == ["texts/a.txt", "texts/b.txt", "words.yaml"]
    assert experiment.corpus_files("hub") == []


def over(harvest: Any, reads: list[str]) -> Experiment:
    """A dictionary over the harvests `base` and `chat`, of models, and `bench`."""
    bench = {"bench": {"features": 20, "sites": {"p": 16}, "rows": 4000, "sparsity": 0.9, "interference": 0.3}}
    ours = {"model": "m", "corpus": "c", "sites": ["embed"]}
    dictionary = {"harvest": harvest, "reads": reads, "latents": 8, "sparsity": {"topk": {"l0": 2}}, "tokens": 10}
    config = {
        "models": {"m": {"id": "m"}},
        "corpora": {"c": {"documentation": "installed", "tokens": 10}},
        "harvests": {"base": ours, "chat": ours, "bench": bench},
        "dictionaries": {"d": dictionary},
    }
    return load_experiment(config, "configs/mine.yaml")


def test_one_harvest_or_several() -> None:
    for harvest, site in (("base", "embed"), (["base"], "embed"), (["chat", "base"], "base/embed")):
        found = over(harvest, [site]).dictionaries["d"]
        assert found.harvests == ([harvest] if isinstance(harvest, str) else harvest)
        assert found.reads == [site]


@pytest.mark.parametrize(
    ("harvest", "site", "says"),
    [
        ([], "embed", "^dictionaries.d.harvest: .*: give one harvest, or several different ones"),
        (["base", "base"], "base/embed", "^dictionaries.d.harvest: .*: give one harvest, or several different ones"),
        (["base", "nope"], "base/embed", "dictionaries.d.harvest: nope: no such name; there are base, chat, bench"),
        (["base", "bench"], "base/embed", "dictionaries.d.harvest: bench: a harvest of the bench is read alone"),
        (["base", "chat"], "embed", "dictionaries.d: embed: .* is written base/<site> or chat/<site>"),
        (["base", "chat"], "bench/p", "dictionaries.d: bench/p: .* is written base/<site> or chat/<site>"),
        ("base", "base/embed", "dictionaries.d: base/embed: a site of base is written <site>"),
    ],
)
def test_mistakes_in_several_harvests(harvest: Any, site: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as raised:
        over(harvest, [site])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("harvest", "reads", "embedding", "found"),
    [
        ("base", "in", None, None),
        ("base", "in", "out", ("base", "out")),
        ("base", "in", "tuned/in", ("tuned", "in")),
        (["base", "tuned"], "base/in", "tuned/out", ("tuned", "out")),
        ("base", "in", "in", "dictionaries.d.embedding: in: the dictionary reads it"),
        ("base", "in", "base/in", "dictionaries.d.embedding: base/in: the dictionary reads it"),
        ("base", "in", "other/in", "dictionaries.d.embedding: other: no such name; there are base, tuned"),
        (
            ["base", "tuned"],
            "base/in",
            "out",
            "dictionaries.d.embedding: out: of several harvests; write <harvest>/out",
        ),
    ],
)
def test_what_rows_are_compared_by(harvest: Any, reads: str, embedding: str | None, found: Any) -> None:
    model, corpus = {"model": "m", "corpus": "c"}, {"files": ["x.txt"], "tokens": 100}
    config = {
        "name": "embedding",
        "models": {"m": {"id": "x"}},
        "corpora": {"c": corpus},
        "harvests": {name: {**model, "sites": ["in", "out"]} for name in ("base", "tuned")},
        "dictionaries": {
            "d": {
                "harvest": harvest,
                "reads": [reads],
                "latents": 8,
                "sparsity": {"topk": {"l0": 2}},
                "tokens": 100,
                "embedding": embedding,
            }
        },
    }
    if isinstance(found, str):
        with pytest.raises(UserError, match=found):
            load_experiment(config, "x.yaml")
        return
    experiment = load_experiment(config, "x.yaml")
    assert experiment.dictionaries["d"].compared_in == found
    assert "embedding" not in experiment.dictionary_text("d")  # naming another is no reason to train again
