"""How long an experiment takes on a machine, and what one could change."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from analyze.experiment import BenchHarvest, Experiment
from analyze.plan import Look, Plan, plan_experiment
from harvest.plan import Footprint, Sites
from harvest.rates import Rates


def hours(plan: Plan, rates: Rates) -> dict[str, float]:
    """Step -> hours. What is read or written goes on while the device computes: the slower of the two counts."""
    found = {}
    for name, harvest in plan.harvests.items():
        seconds = harvest.flops / rates.products[harvest.dtype]
        found[f"harvesting {name}"] = max(seconds, harvest.store_bytes / rates.disk)
    for name, dictionary in plan.dictionaries.items():
        # The encoder's product is in bfloat16 where that is faster.
        product = max(rates.products["float32"], rates.products["bfloat16"])
        seconds = dictionary.flops / product + dictionary.moved / rates.memory
        found[f"training {name}"] = max(seconds, dictionary.from_disk / rates.disk)
        measuring = plan.measuring[name]
        seconds = measuring.flops / rates.products["float32"] + measuring.moved / rates.memory
        found[f"measuring {name}"] = max(seconds, measuring.from_disk / rates.disk)
    return {name: seconds / 3600 for name, seconds in found.items()}


@dataclass(frozen=True)
class Change:
    """What one could change, and what the experiment then costs."""

    what: str
    plan: Plan


def changes(experiment: Experiment, look: Look, prepared: Mapping[str, Mapping[str, Any]]) -> Iterator[Change]:
    """Half of each corpus, one site fewer, half of each dictionary's latents or tokens."""
    for name, corpus in experiment.corpora.items():
        key = "tokens" if hasattr(corpus, "tokens") else "images"
        half = corpus.model_copy(update={key: max(1, getattr(corpus, key) // 2)})
        changed = experiment.model_copy(update={"corpora": {**experiment.corpora, name: half}})
        others = {
            harvest: facts for harvest, facts in prepared.items() if experiment.model_harvests[harvest].corpus != name
        }
        yield Change(f"half the {key} of corpora.{name}", plan_experiment(changed, look, others))
    for name, bench in experiment.bench_harvests.items():
        half_bench = BenchHarvest(bench=bench.bench.model_copy(update={"rows": max(1, bench.bench.rows // 2)}))
        changed = experiment.model_copy(update={"harvests": {**experiment.harvests, name: half_bench}})
        yield Change(f"half the rows of harvests.{name}", plan_experiment(changed, look, prepared))
    for name, harvest in experiment.model_harvests.items():
        for site in harvest.sites if len(harvest.sites) > 1 else ():
            yield from _without(experiment, look, prepared, name, site)
    for key in ("latents", "tokens"):
        fewer = {
            name: spec.model_copy(update={key: max(1, getattr(spec, key) // 2)})
            for name, spec in experiment.trained.items()
        }
        changed = experiment.model_copy(update={"dictionaries": {**experiment.dictionaries, **fewer}})
        yield Change(f"half the {key} of every dictionary", plan_experiment(changed, look, prepared))


def _without(
    experiment: Experiment, look: Look, prepared: Mapping[str, Mapping[str, Any]], name: str, site: str
) -> Iterator[Change]:
    """The experiment without a site, and the dictionaries that read or write it. A pass is as deep as before."""

    def of(dictionary: Any) -> bool:
        named = f"{name}/{site}" if len(dictionary.harvests) > 1 else site
        return name in dictionary.harvests and named in {*dictionary.reads, *dictionary.written}

    left = {key: spec for key, spec in experiment.dictionaries.items() if not of(spec)}
    harvest = experiment.model_harvests[name]
    fewer = harvest.model_copy(update={"sites": [each for each in harvest.sites if each != site]})
    changed = experiment.model_copy(update={"harvests": {**experiment.harvests, name: fewer}, "dictionaries": left})

    def look_again(other: str) -> tuple[Sites, Footprint | None]:
        sites, footprint = look(other)
        if other != name:
            return sites, footprint
        stored = sites.aliases.get(site, site)
        widths = {each: width for each, width in sites.widths.items() if each != stored}
        return Sites(widths or sites.widths, sites.rows, sites.aliases), footprint

    gone = [key for key in experiment.dictionaries if key not in left]
    beside = f" and {', '.join(gone)} with it" if gone else ", which no dictionary reads,"
    yield Change(f"leaving out {site} of {name}{beside}", plan_experiment(changed, look_again, prepared))
