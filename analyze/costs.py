"""What an experiment costs, as text: its harvests and dictionaries, the totals, and what one could change."""

import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence

from analyze.experiment import Experiment
from analyze.footprints import Footprints
from analyze.hours import Change, changes, hours
from analyze.plan import Plan, plan_experiment, prepared_corpora, size
from harvest.files import existing
from harvest.overview import table
from harvest.rates import H100, SHARE, Rates, measured_rates

WORTH_SAYING = 0.05
"""A change that saves less than this share is not mentioned."""
HARVEST = ("harvest", "rows", "sites", "store", "forward FLOPs", "memory", "time here", "H100")
DICTIONARY = (
    "dictionary",
    "parameters",
    "steps",
    "FLOPs",
    "memory",
    "weights",
    "checkpoint",
    "codes",
    "time here",
    "H100",
)
ESTIMATE = f"""\
An estimate of harvesting, of training, and of the pass that encodes every row to measure it ("a + b" is training and
this pass). Downloads, tokenising, what is measured of the codes and the report are left out. Here: at the rates of a
matrix product, of copying in memory and of writing to this disk, measured just now. An H100: at {SHARE:.0%} of its
published peaks, with a disk of 1 GB/s."""


def describe_costs(
    experiment: Experiment, results: pathlib.Path, architectures: Mapping[str, pathlib.Path], config: str
) -> str:
    """Everything that `python -m harvest plan` prints."""
    footprints = Footprints(experiment, architectures)
    prepared = prepared_corpora(experiment, results)
    plan = plan_experiment(experiment, footprints.look, prepared)
    dtypes = {"float32", "bfloat16", *(harvest.dtype for harvest in plan.harvests.values())}
    machines = [measured_rates(dtypes, results), H100]
    times = [hours(plan, rates) for rates in machines]
    options = list(changes(experiment, footprints.look, prepared))
    parts = [
        f"plan of {experiment.name}, as {config} has it",
        table(HARVEST, list(_harvests(plan, times))),
        table(DICTIONARY, list(_dictionaries(plan, times))),
        "\n".join(_totals(plan, results, machines, times)) if plan.harvests else "",
        "\n".join(_savings(plan, options, machines[0])),
        "\n".join(f"not known: {sentence}" for sentence in plan.unknown),
    ]
    return "\n\n".join(part for part in parts if part)


def _harvests(plan: Plan, times: Sequence[Mapping[str, float]]) -> Iterator[tuple[str, ...]]:
    for name, harvest in plan.harvests.items():
        widths = list(harvest.sites.widths.values())
        alike = len(set(widths)) == 1
        yield (
            name,
            f"{harvest.rows:,}",
            f"{len(widths)} × {widths[0]:,}" if alike else " + ".join(f"{width:,}" for width in widths),
            size(harvest.store_bytes),
            f"{harvest.flops:.2g}" if harvest.flops else "-",
            size(harvest.host_bytes + harvest.device_bytes),
            *(duration(each[f"harvesting {name}"]) for each in times),
        )


def _dictionaries(plan: Plan, times: Sequence[Mapping[str, float]]) -> Iterator[tuple[str, ...]]:
    for name, found in plan.dictionaries.items():
        measuring, memory = plan.measuring[name], plan.steps()[f"training {name}"][0]
        yield (
            name,
            f"{found.parameters:,}",
            f"{found.steps:,}",
            f"{found.flops:.2g}",
            *map(size, (memory, found.weights_bytes, found.checkpoint_bytes, measuring.codes_bytes)),
            *(f"{duration(each[f'training {name}'])} + {duration(each[f'measuring {name}'])}" for each in times),
        )


def _totals(
    plan: Plan, results: pathlib.Path, machines: Sequence[Rates], times: Sequence[Mapping[str, float]]
) -> Iterator[str]:
    free = size(shutil.disk_usage(existing(results)).free)
    images = any(harvest.corpus_bytes is None for harvest in plan.harvests.values())
    left_out = "the images and the report are" if images else "the report is"
    yield (
        f"disk: {size(plan.disk)} at the peak, {size(plan.store_bytes)} of it stores ({left_out} not counted); "
        f"{free} are free"
    )
    (alone, memory), (on, gpu), (beside, host) = map(plan.peak, range(3))
    yield (
        f"memory: {size(memory)} at the peak ({alone}); with a GPU {size(gpu)} on it ({on}) and {size(host)} beside it "
        f"({beside})"
    )
    here, h100 = (duration(sum(each.values())) for each in times)
    yield f"time: about {here} on {machines[0].device}, about {h100} on {H100.device}"
    yield ESTIMATE


def _savings(plan: Plan, options: Sequence[Change], rates: Rates) -> Iterator[str]:
    """The three changes that save most disk, memory and time. For the last two, none that does without a dictionary."""
    measures: dict[str, tuple[Callable[[Plan], float], Callable[[float], str]]] = {
        "disk": (lambda each: each.disk, size),
        "memory": (lambda each: each.peak(0)[1], size),
        "time": (lambda each: sum(hours(each, rates).values()), duration),
    }
    for what, (cost, said) in measures.items():
        now = cost(plan)
        saved = {
            change.what: now - cost(change.plan)
            for change in options
            if what == "disk" or len(change.plan.dictionaries) == len(plan.dictionaries)
        }
        best = sorted((name for name in saved if saved[name] > WORTH_SAYING * now), key=lambda name: -saved[name])[:3]
        if best:
            yield f"less {what}, of {said(now)}: " + "; ".join(f"{name} saves {said(saved[name])}" for name in best)


def duration(hours: float) -> str:
    """In seconds or minutes below one hour, in days above 100 hours."""
    if hours < 1 / 60:
        return f"{3600 * hours:.2g} s"
    if hours < 1:
        return f"{60 * hours:.2g} min"
    return f"{hours:.2g} h" if hours < 99.5 else f"{hours / 24:,.0f} days"
