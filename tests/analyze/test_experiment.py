"""The whole config: dictionaries that are trained together."""

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
