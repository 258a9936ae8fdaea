"""What a run costs, in its first lines. Imports nothing heavy: they come before everything else."""

import pathlib
import shutil
from collections.abc import Iterator

from analyze.experiment import Experiment
from analyze.plan import Plan, is_of_images, plan_experiment, prepared_corpora, size
from harvest.errors import NotKnown
from harvest.files import existing
from harvest.plan import Footprint, Sites
from harvest.stated import stated_sites


def print_first_lines(experiment: Experiment, config: str, results: pathlib.Path) -> None:
    """They only inform: what is wrong with them is no reason not to run."""
    try:
        print(first_lines(experiment, config, results))
    except Exception as error:
        print(f"plan of {experiment.name}: cannot be made ({error})")


def first_lines(experiment: Experiment, config: str, results: pathlib.Path) -> str:
    """Rows, disk and memory, as far as they are known without making a model, and how to know the rest: by `plan` of
    `config`, a file and its options."""
    more = f"python -m harvest plan {config}"

    def look(name: str) -> tuple[Sites, Footprint | None]:
        model = experiment.model_of(name)
        harvest = experiment.model_harvests[name]
        made = pathlib.Path("resources/models") / model
        found = stated_sites(experiment.models[model], made, harvest, is_of_images(experiment, name))
        if found is None:
            raise NotKnown(f"how wide its sites are; `{more}` asks the model's config")
        return found, None

    plan = plan_experiment(experiment, look, prepared_corpora(experiment, results))
    return "\n".join(_lines(experiment, plan, more, results))


def _lines(experiment: Experiment, plan: Plan, more: str, results: pathlib.Path) -> Iterator[str]:
    counts = f"harvests: {len(experiment.harvests)}, dictionaries: {len(experiment.dictionaries)}"
    yield f"plan of {experiment.name}: {counts}"
    if plan.harvests:
        free = size(shutil.disk_usage(existing(results)).free)
        step, memory = plan.peak(0)
        yield f"  rows: {sum(harvest.rows for harvest in plan.harvests.values()):,}"
        yield f"  disk: {size(plan.disk)} at the peak, {size(plan.store_bytes)} of it stores; {free} are free"
        yield f"  memory: {size(memory)} at the peak ({step}), models left out"
        yield f"  models, hours and what one could change: {more}"
    yield from (f"  not known: {sentence}" for sentence in plan.unknown)
