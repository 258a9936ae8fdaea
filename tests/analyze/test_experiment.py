"""The whole config: dictionaries that are trained together."""

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
