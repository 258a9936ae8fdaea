# Names -> files -> commands. What a config may say is in harvest/config.py, train/config.py and analyze/experiment.py.
import pathlib
import shlex
import sys
import time

from analyze.experiment import load_experiment
from harvest.errors import UserError

begun = time.monotonic()
# The rules' `python` is the one that runs Snakemake, whether its environment is activated or not.
folder = shlex.quote(str(pathlib.Path(sys.executable).parent))
prefix = f"set -euo pipefail; PATH={folder}:$PATH; "
if not workflow.configfiles:

    configfile: "configs/demo.yaml"


try:
    experiment = load_experiment(config, str(workflow.configfiles[0]))
except UserError as error:
    print(f"error: {workflow.configfiles[0]}: {error}", file=sys.stderr)
    sys.exit(2)

if experiment.dask:
    prefix += f"export DASK_SCHEDULER_ADDRESS={shlex.quote(experiment.dask)}; "
shell.prefix(prefix)
results = pathlib.Path("results") / experiment.name


def any_of(names):
    return "|".join(names) or "(?!)"


def directory_of(harvest):
    """The directory a harvest's model is made in, where it is made here."""
    model = experiment.model_of(harvest)
    return f"resources/models/{model}" if experiment.models[model].wheel else []


def text_of(harvest):
    return experiment.model_text(experiment.model_of(harvest), directory_of(harvest))


def store_of(harvest):
    if experiment.stores:
        return f"{experiment.stores}/{experiment.name}/{harvest}/activations.zarr"
    return results / "harvest" / harvest / "activations.zarr"


def model_directory(wildcards):
    return directory_of(wildcards.harvest)


def model_text(wildcards):
    return text_of(wildcards.harvest)


# On a cluster these take seconds where Snakemake runs, and would take a place in the queue.
localrules:
    all,
    harvest,
    table,


rule all:
    default_target: True
    input:
        results / "report",


rule model:
    output:
        directory("resources/models/{model}"),
    log:
        results / "logs/model-{model}.log",
    wildcard_constraints:
        model=any_of(experiment.models),
    threads: workflow.cores
    params:
        spec=lambda wildcards: experiment.model_source_text(wildcards.model),
    shell:
        "python -m harvest model {params.spec:q} {output}" " 2>&1 | tee {log}"


rule prepare:
    input:
        model_directory,
        lambda wildcards: experiment.corpus_files(wildcards.harvest),
    output:
        results / "harvest/{harvest}/corpus.json",
    log:
        results / "logs/prepare-{harvest}.log",
    threads: workflow.cores
    params:
        spec=lambda wildcards: experiment.corpus_text(wildcards.harvest),
        model=model_text,
        corpus=lambda wildcards: results / "harvest" / wildcards.harvest / "corpus.zarr",
    shell:
        "python -m harvest prepare {params.spec:q} --model {params.model:q}"
        " --output {params.corpus} --manifest {output}"
        " 2>&1 | tee {log}"


# How many jobs a harvest is split over: --set-scatter parts=8. The bytes of the store are the same for any number. Each
# job has all cores, because a CPU's arithmetic differs in its last bits with the number of threads; GPUs don't mind:
# --set-threads harvest_part=4 runs as many jobs at once as the cores allow, and they take the machine's GPUs in turn.
scattergather:
    parts=1,


# The store is no output: Snakemake would delete it before a rerun. The command resumes it.
rule harvest_part:
    input:
        rules.prepare.output,
        model_directory,
    output:
        touch(results / "harvest/{harvest}/parts/{scatteritem}.done"),
    log:
        results / "logs/harvest-{harvest}-{scatteritem}.log",
    wildcard_constraints:
        harvest=any_of(experiment.model_harvests),
    threads: workflow.cores
    params:
        spec=lambda wildcards: experiment.harvest_text(wildcards.harvest),
        model=model_text,
        corpus=rules.prepare.params.corpus,
        part=lambda wildcards: wildcards.scatteritem.replace("-of-", "/"),
        store=lambda wildcards: store_of(wildcards.harvest),
    shell:
        "python -m harvest run {params.spec:q} --model {params.model:q} --corpus {params.corpus}"
        " --store {params.store:q} --part {params.part}"
        " 2>&1 | tee {log}"


rule harvest:
    input:
        gather.parts(
            results / "harvest/{{harvest}}/parts/{scatteritem}.done",
        ),
    output:
        results / "harvest/{harvest}/activations.manifest.json",
    log:
        results / "logs/harvest-{harvest}.log",
    wildcard_constraints:
        harvest=any_of(experiment.model_harvests),
    params:
        store=rules.harvest_part.params.store,
    shell:
        "python -m harvest manifest {params.store:q} --output {output} 2>&1 | tee {log}"


rule bench:
    output:
        results / "harvest/{harvest}/activations.manifest.json",
    log:
        results / "logs/bench-{harvest}.log",
    wildcard_constraints:
        harvest=any_of(experiment.bench_harvests),
    threads: workflow.cores
    params:
        spec=lambda wildcards: experiment.harvest_text(wildcards.harvest),
        store=rules.harvest_part.params.store,
    shell:
        "python -m harvest bench {params.spec:q} --store {params.store:q} --manifest {output}"
        " 2>&1 | tee {log}"


def manifests_of(wildcards):
    harvests = experiment.dictionaries[wildcards.dictionary].harvests
    return expand(rules.harvest.output, harvest=harvests)


def stores_of(dictionary):
    """The options that say where a dictionary's rows are."""
    for harvest in experiment.dictionaries[dictionary].harvests:
        yield from ("--store", store_of(harvest))


rule anchors:
    input:
        manifests_of,
    output:
        results / "anchors/{dictionary}.safetensors",
    log:
        results / "logs/anchors-{dictionary}.log",
    wildcard_constraints:
        dictionary=any_of(experiment.anchored),
    threads: workflow.cores
    params:
        spec=lambda wildcards: experiment.dictionary_text(wildcards.dictionary),
        stores=lambda wildcards: list(stores_of(wildcards.dictionary)),
    shell:
        "python -m train anchors {params.spec:q} {params.stores:q} --output {output}"
        " 2>&1 | tee {log}"


def anchors_of(wildcards):
    anchored = wildcards.dictionary in experiment.anchored
    return (
        expand(rules.anchors.output, dictionary=wildcards.dictionary)
        if anchored
        else []
    )


# One process for each GPU that the profile gives. Not a param: another machine is no reason to train again. A SIGTERM is
# for all of a job: this shell waits for the checkpoint, as a cluster kills what its job leaves behind, and tee for the
# line that says so.
train_command = (
    "trap : TERM; "
    "$(test {resources.gpu} -gt 1 && echo torchrun --standalone --nproc_per_node {resources.gpu} || echo python)"
    " -m train run {params.specs:q} {params.stores:q} {params.places:q} --memory {resources.rows_mib}"
    " 2>&1 | (trap '' TERM; exec tee {log})"
)


def places_of(dictionaries, anchors):
    """The options that say where dictionaries go, and where their anchors are."""
    for name in dictionaries:
        yield from ("--output", results / "train" / name)
        yield from ("--checkpoints", results / "checkpoints" / name)
    for file in anchors:
        yield from ("--anchors", file)


# Checkpoints are no output either: a rerun continues from them.
rule train:
    input:
        manifests_of,
        anchors=anchors_of,
    output:
        results / "train/{dictionary}/cfg.json",
        results / "train/{dictionary}/sae_weights.safetensors",
        results / "train/{dictionary}/metrics.jsonl",
        results / "train/{dictionary}/resampling.jsonl",
        results / "train/{dictionary}/training.json",
    log:
        results / "logs/train-{dictionary}.log",
    wildcard_constraints:
        dictionary=any_of(experiment.trained_alone),
    threads: workflow.cores
    resources:
        gpu=0,
        rows_mib=2048,
    params:
        specs=rules.anchors.params.spec,
        stores=lambda wildcards: list(stores_of(wildcards.dictionary)),
        places=lambda wildcards, input: list(
            places_of([wildcards.dictionary], input.anchors)
        ),
    shell:
        train_command


rule load:
    input:
        manifests_of,
        lambda wildcards: experiment.loaded_files(wildcards.dictionary),
    output:
        rules.train.output,
    log:
        results / "logs/load-{dictionary}.log",
    wildcard_constraints:
        dictionary=any_of(experiment.loaded),
    params:
        spec=rules.anchors.params.spec,
        stores=rules.train.params.stores,
        folder=lambda wildcards: results / "train" / wildcards.dictionary,
    shell:
        "python -m train load {params.spec:q} {params.stores:q} --output {params.folder}"
        " 2>&1 | tee {log}"


for name, dictionaries in experiment.passes.items():

    rule:
        name:
            f"train_together_{name}"
        input:
            expand(
                rules.harvest.output,
                harvest=experiment.dictionaries[dictionaries[0]].harvests,
            ),
            anchors=expand(
                rules.anchors.output,
                dictionary=[d for d in dictionaries if d in experiment.anchored],
            ),
        output:
            expand(rules.train.output, dictionary=dictionaries),
        log:
            results / f"logs/train-together-{name}.log",
        threads: workflow.cores
        resources:
            gpu=0,
            rows_mib=2048,
        params:
            specs=[experiment.dictionary_text(d) for d in dictionaries],
            stores=list(stores_of(dictionaries[0])),
            places=lambda wildcards, input, dictionaries=dictionaries: list(
                places_of(dictionaries, input.anchors)
            ),
        shell:
            train_command


def corpus_of(wildcards):
    """The option that says which images a dictionary's rows are of, if they are of images."""
    harvest = experiment.dictionaries[wildcards.dictionary].harvests[0]
    corpus = results / "harvest" / harvest / "corpus.zarr"
    return ["--corpus", corpus] if harvest in experiment.of_images else []


def embedding_manifest(wildcards):
    compared = experiment.dictionaries[wildcards.dictionary].compared_in
    return expand(rules.harvest.output, harvest=compared[0]) if compared else []


def embedding_of(dictionary):
    """The options that say by which site a dictionary's rows are compared."""
    spec = experiment.dictionaries[dictionary]
    if spec.compared_in:
        harvest, site = spec.compared_in
        several = len(spec.harvests) > 1 and harvest in spec.harvests
        yield from ("--embedding", f"{harvest}/{site}" if several else site)
        if harvest not in spec.harvests:
            yield from ("--embedding-store", store_of(harvest))


rule measure:
    input:
        rules.train.output,
        manifests_of,
        embedding_manifest,
        anchors=anchors_of,
    output:
        results / "analyze/{dictionary}/summary.json",
        results / "analyze/{dictionary}/latents.safetensors",
        results / "analyze/{dictionary}/labels.safetensors",
        results / "analyze/{dictionary}/monosemanticity.json",
        results / "analyze/{dictionary}/monosemanticity.safetensors",
        directory(results / "analyze/{dictionary}/examples"),
    log:
        results / "logs/measure-{dictionary}.log",
    threads: workflow.cores
    params:
        dictionary=lambda wildcards: results / "train" / wildcards.dictionary,
        stores=lambda wildcards: list(stores_of(wildcards.dictionary)),
        corpus=corpus_of,
        anchors=lambda wildcards, input: (
            ["--anchors", *input.anchors] if input.anchors else []
        ),
        embedding=lambda wildcards: list(embedding_of(wildcards.dictionary)),
        folder=lambda wildcards: results / "analyze" / wildcards.dictionary,
    shell:
        "python -m analyze measure {params.dictionary} {params.stores:q} --output {params.folder}"
        " {params.corpus:q} {params.anchors:q} {params.embedding:q}"
        " 2>&1 | tee {log}"


def lens_directory(wildcards):
    harvest = experiment.lens_harvest(wildcards.dictionary)
    return directory_of(harvest) if harvest else []


def lens_model(wildcards):
    """The option that says which model's tokens are read at the site written last, where it is one of text."""
    harvest = experiment.lens_harvest(wildcards.dictionary)
    return ["--model", text_of(harvest)] if harvest else []


rule geometry:
    input:
        rules.train.output,
        manifests_of,
        lens_directory,
    output:
        results / "analyze/{dictionary}/geometry.json",
        results / "analyze/{dictionary}/geometry.safetensors",
    log:
        results / "logs/geometry-{dictionary}.log",
    threads: workflow.cores
    params:
        dictionary=lambda wildcards: results / "train" / wildcards.dictionary,
        stores=lambda wildcards: list(stores_of(wildcards.dictionary)),
        model=lens_model,
        folder=rules.measure.params.folder,
    shell:
        "python -m analyze geometry {params.dictionary} {params.stores:q} {params.model:q} --output {params.folder}"
        " 2>&1 | tee {log}"


rule fidelity:
    input:
        rules.train.output,
        manifests_of,
        lens_directory,
    output:
        results / "analyze/{dictionary}/fidelity.json",
    log:
        results / "logs/fidelity-{dictionary}.log",
    wildcard_constraints:
        dictionary=any_of(experiment.of_text),
    threads: workflow.cores
    params:
        dictionary=lambda wildcards: results / "train" / wildcards.dictionary,
        stores=lambda wildcards: list(stores_of(wildcards.dictionary)),
        model=lens_model,
        corpus=lambda wildcards: results
        / "harvest"
        / experiment.lens_harvest(wildcards.dictionary)
        / "corpus.zarr",
        folder=rules.measure.params.folder,
    shell:
        "python -m analyze fidelity {params.dictionary} {params.stores:q} {params.model:q} --corpus {params.corpus}"
        " --output {params.folder} 2>&1 | tee {log}"


rule stability:
    input:
        expand(rules.train.output, dictionary=experiment.dictionaries),
        expand(rules.measure.output, dictionary=experiment.dictionaries),
    output:
        file=results / "stability.json",
        pairs=directory(results / "stability"),
    log:
        results / "logs/stability.log",
    threads: workflow.cores
    params:
        results=results,
        dictionaries=list(experiment.dictionaries),
    shell:
        "python -m analyze stability {params.dictionaries} --results {params.results} --output {output.file}"
        " 2>&1 | tee {log}"


rule recovery:
    input:
        rules.train.output,
        manifests_of,
        anchors=anchors_of,
    output:
        results / "analyze/{dictionary}/recovery.json",
        results / "analyze/{dictionary}/recovery.safetensors",
    log:
        results / "logs/recovery-{dictionary}.log",
    wildcard_constraints:
        dictionary=any_of(experiment.with_truth),
    threads: workflow.cores
    params:
        dictionary=lambda wildcards: results / "train" / wildcards.dictionary,
        stores=lambda wildcards: list(stores_of(wildcards.dictionary)),
        anchors=rules.measure.params.anchors,
        folder=rules.measure.params.folder,
    shell:
        "python -m analyze recovery {params.dictionary} {params.stores:q} --output {params.folder} {params.anchors:q}"
        " 2>&1 | tee {log}"


rule table:
    input:
        expand(rules.recovery.output, dictionary=experiment.with_truth),
        expand(rules.measure.output, dictionary=experiment.with_truth),
    output:
        results / "recovery.csv",
    log:
        results / "logs/table.log",
    params:
        results=results,
        dictionaries=experiment.with_truth,
    shell:
        "python -m analyze table {params.dictionaries} --results {params.results} --output {output}"
        " 2>&1 | tee {log}"


rule theory:
    output:
        results / "theory.json",
    log:
        results / "logs/theory.log",
    threads: workflow.cores
    shell:
        "python -m analyze theory --output {output} 2>&1 | tee {log}"


rule report:
    input:
        [*rules.table.output, *rules.theory.output] if experiment.with_truth else [],
        expand(rules.measure.output, dictionary=experiment.dictionaries),
        expand(rules.geometry.output, dictionary=experiment.dictionaries),
        expand(rules.fidelity.output, dictionary=experiment.of_text),
        rules.stability.output,
        expand(rules.harvest.output, harvest=experiment.harvests),
    output:
        report(
            directory(results / "report"),
            htmlindex="index.html",
            category=experiment.name,
        ),
    log:
        results / "logs/report.log",
    params:
        results=results,
        name=experiment.name,
        dictionaries=list(experiment.dictionaries),
        models=[
            option
            for harvest in experiment.model_harvests
            for option in ("--model", f"{harvest}={experiment.model_name(harvest)}")
        ],
    shell:
        "python -m analyze report {params.name} {params.dictionaries} --results {params.results} --output {output}"
        " {params.models:q}"
        " 2>&1 | tee {log}"


onstart:
    from analyze.first_lines import print_first_lines

    other = f" --model {config['model']}" if "model" in config else ""
    print_first_lines(experiment, f"{workflow.configfiles[0]}{other}", results)


onsuccess:
    from analyze.cost import print_cost

    print_cost(results / "report/index.html", time.monotonic() - begun)
