"""What an experiment costs before it starts: what its harvests and dictionaries cost, together."""

import math
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from analyze.experiment import BenchHarvest, Experiment, ModelHarvest, TrainedDictionary
from harvest.config import ImageCorpusSpec
from harvest.errors import NotKnown
from harvest.files import read_json
from harvest.layout import ITEM_BYTES, Layout
from harvest.plan import PROGRAM_BYTES, Footprint, HarvestPlan, Sites, plan_bench, plan_harvest
from train.plan import DictionaryPlan, Reading, plan_dictionary

PLACE_BYTES = 8
"""A latent's number and its activation, in the codes of `analyze.encoded`."""
BATCH_PLACES = 2**24
"""Pre-activations in one product: 64 MiB of them."""
MEASURED_BYTES = 1700
"""What `latents.safetensors` has of a latent."""
STATISTICS_BYTES = 4 * 3200
"""What is in memory of a latent while blocks are merged."""


@dataclass(frozen=True)
class Measuring:
    """One pass that encodes all rows of a store, in float32."""

    flops: float
    moved: float
    from_disk: int
    codes_bytes: int
    """On disk for a time."""
    host_bytes: int
    device_bytes: int


@dataclass(frozen=True)
class Plan:
    """`unknown` says in a sentence each what could not be worked out, and how it can be."""

    harvests: Mapping[str, HarvestPlan]
    dictionaries: Mapping[str, DictionaryPlan]
    measuring: Mapping[str, Measuring]
    unknown: tuple[str, ...]

    @property
    def store_bytes(self) -> int:
        return sum(harvest.store_bytes for harvest in self.harvests.values())

    @property
    def disk(self) -> int:
        """At the peak: checkpoints, of which there are two for a moment, and codes go when they are done with."""
        corpora = sum(harvest.corpus_bytes or 0 for harvest in self.harvests.values())
        kept = sum(plan.weights_bytes + MEASURED_BYTES * plan.latents for plan in self.dictionaries.values())
        passing = [2 * plan.checkpoint_bytes for plan in self.dictionaries.values()]
        passing += [measuring.codes_bytes for measuring in self.measuring.values()]
        return self.store_bytes + corpora + kept + max(passing, default=0)

    def steps(self) -> dict[str, tuple[int, int, int]]:
        """Step -> its memory without a GPU; with one, that on it and that beside it."""
        found = {}
        for name, harvest in self.harvests.items():
            beside, on = harvest.host_bytes, harvest.device_bytes
            found[f"harvesting {name}"] = (beside + on, on, beside)
        for name, plan in self.dictionaries.items():
            beside = PROGRAM_BYTES + plan.rows_bytes
            # A checkpoint passes through the memory beside the GPU.
            found[f"training {name}"] = (
                beside + plan.device_bytes,
                plan.device_bytes,
                beside + plan.checkpoint_bytes,
            )
            measuring = self.measuring[name]
            beside, on = measuring.host_bytes, measuring.device_bytes
            found[f"measuring {name}"] = (beside, on, beside)
        return found

    def peak(self, which: int) -> tuple[str, int]:
        """The step that takes most memory, and how much: 0 without a GPU, 1 on it, 2 beside it."""
        steps = {name: memory[which] for name, memory in self.steps().items()}
        name = max(steps, key=lambda name: steps[name], default="")
        return name, steps.get(name, 0)


Look = Callable[[str], tuple[Sites, Footprint | None]]
"""Of a harvest of a model: its sites, and its model's footprint. Raises `NotKnown` where that can't be known."""


def plan_experiment(experiment: Experiment, look: Look, prepared: Mapping[str, Mapping[str, Any]]) -> Plan:
    """`prepared`: the facts of each harvest's corpus that is there."""
    harvests: dict[str, HarvestPlan] = {}
    unknown: dict[str, None] = {}
    for name, spec in experiment.harvests.items():
        if isinstance(spec, BenchHarvest):
            harvests[name] = plan_bench(spec.bench)
            continue
        try:
            found = _plan_of_model(experiment, spec, look(name), prepared.get(name))
        except NotKnown as error:
            unknown[f"harvest {name}, {_budget(experiment, spec)}: {error}"] = None
            continue
        if found is None:
            texts = "its rows are texts, whose number is known once the corpus is prepared"
            unknown[f"harvest {name}, {_budget(experiment, spec)}: {texts}"] = None
        else:
            harvests[name] = found
    dictionaries, measuring = {}, {}
    for name, dictionary in experiment.trained.items():
        if set(dictionary.harvests) <= harvests.keys():
            reading = _reading(dictionary, harvests)
            dictionaries[name] = plan_dictionary(dictionary, reading)
            columns = _columns(experiment, dictionary.harvests[0])
            measuring[name] = _measuring(dictionary, reading, dictionaries[name].parameters, columns)
    if experiment.loaded:
        names = ", ".join(experiment.loaded)
        unknown[f"{names}: loaded, not trained; their size is known once they are here"] = None
    return Plan(harvests, dictionaries, measuring, tuple(unknown))


def _plan_of_model(
    experiment: Experiment,
    spec: ModelHarvest,
    found: tuple[Sites, Footprint | None],
    prepared: Mapping[str, Any] | None,
) -> HarvestPlan | None:
    dtype = experiment.models[spec.model].dtype
    return plan_harvest(spec, experiment.corpora[spec.corpus], prepared, dtype, *found)


def _budget(experiment: Experiment, spec: ModelHarvest) -> str:
    corpus = experiment.corpora[spec.corpus]
    return f"{corpus.images:,} images" if isinstance(corpus, ImageCorpusSpec) else f"{corpus.tokens:,} tokens"


def _reading(dictionary: TrainedDictionary, harvests: Mapping[str, HarvestPlan]) -> Reading:
    def width(site: str) -> int:
        harvest, _, name = site.partition("/")
        if len(dictionary.harvests) == 1:
            harvest, name = dictionary.harvests[0], site
        return harvests[harvest].sites.width(name)

    read_from = [harvests[name] for name in dictionary.harvests]
    item = ITEM_BYTES[read_from[0].dtype]
    layouts = [Layout.of(harvest.rows, harvest.sites.widths, harvest.dtype) for harvest in read_from]
    return Reading(
        read_from[0].rows,
        max(layout.chunk_rows for layout in layouts),
        sum(harvest.row_bytes for harvest in read_from),
        item * sum(map(width, {*dictionary.reads, *dictionary.written})),
        sum(map(width, dictionary.reads)),
        sum(map(width, dictionary.written)),
    )


def _columns(experiment: Experiment, harvest: str) -> int:
    """What the rows have beside activations that latents are held against: their token, and a label of each set."""
    if harvest in experiment.bench_harvests:
        return 0
    corpus = experiment.corpora[experiment.model_harvests[harvest].corpus]
    if isinstance(corpus, ImageCorpusSpec):
        return len(corpus.labels) or 1
    return 1 + len(corpus.label_sets) + len(corpus.lexicons)


def _measuring(spec: TrainedDictionary, reading: Reading, parameters: int, columns: int) -> Measuring:
    # The codes, and where there is something to hold latents against, the same latent by latent.
    place_bytes = PLACE_BYTES + (PLACE_BYTES // 2 * (1 + columns) if columns else 0)
    batch = max(1, BATCH_PLACES // spec.latents)
    sparse = 2 * spec.l0 * (reading.read + reading.written)
    return Measuring(
        reading.rows * (2 * reading.read * spec.latents + sparse),
        # Each batch reads the encoder, and its pre-activations are written and read.
        reading.rows * (4 * reading.read * spec.latents / batch + 12 * spec.latents + 2 * sparse),
        reading.rows * reading.row,
        int(reading.rows * (spec.l0 + 1) * place_bytes),
        # The weights are read twice, once as a file whose hash is taken.
        PROGRAM_BYTES + 8 * parameters + STATISTICS_BYTES * spec.latents + 12 * BATCH_PLACES,
        4 * parameters + 12 * BATCH_PLACES,
    )


def prepared_corpora(experiment: Experiment, results: pathlib.Path) -> dict[str, Mapping[str, Any]]:
    """The facts of every corpus that was prepared from what the config says of it now."""
    found: dict[str, Mapping[str, Any]] = {}
    for name, harvest in experiment.model_harvests.items():
        file = results / "harvest" / name / "corpus.json"
        if file.is_file():
            facts = read_json(file, "corpus")
            spec = experiment.corpora[harvest.corpus].model_dump(mode="json")
            if isinstance(facts, dict) and facts.get("spec") == spec:
                found[name] = facts
    return found


def is_of_images(experiment: Experiment, harvest: str) -> bool:
    return isinstance(experiment.corpora[experiment.model_harvests[harvest].corpus], ImageCorpusSpec)


def size(count: float) -> str:
    """Bytes for a person, in three digits."""
    units = ("B", "kB", "MB", "GB", "TB", "PB")
    power = min(len(units) - 1, int(math.log10(count) // 3)) if count >= 1 else 0
    return f"{count / 1000**power:.3g} {units[power]}"
