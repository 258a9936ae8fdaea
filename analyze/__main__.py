"""`python -m analyze`: a store and a dictionary -> measurements -> a report."""

import pathlib
from typing import Annotated

import typer

from harvest.config import read_model, read_values
from harvest.errors import UserError, main

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True, help=__doc__)

Folder = Annotated[pathlib.Path, typer.Argument(help="The dictionary's folder.")]
Store = Annotated[str, typer.Option(help="The store it was trained on, activations.zarr or its URL.")]
Stores = Annotated[
    list[str],
    typer.Option(
        "--store", help="The store it was trained on, activations.zarr or its URL; repeated where there are several."
    ),
]
Output = Annotated[pathlib.Path, typer.Option(help="The folder the measurements go to.")]
Anchors = Annotated[pathlib.Path | None, typer.Option(help="The anchors it was trained with; left out.")]
Names = Annotated[list[str], typer.Argument(help="Dictionaries, in the order they are shown in.")]
Results = Annotated[pathlib.Path, typer.Option(help="The experiment's results folder.")]


@app.command()
def plan(
    config: Annotated[str, typer.Argument(help="An experiment: its YAML file, or YAML or JSON text.")],
    model: Annotated[
        str | None, typer.Option(help="A model in the place of its one, as `--config model=` gives it to Snakemake.")
    ] = None,
    architecture: Annotated[
        list[str] | None,
        typer.Option(help="`<model>=<file>`: take this config.json for one of its models; for where the Hub is not."),
    ] = None,
) -> None:
    """What an experiment costs before it starts: rows, disk, memory, FLOPs, hours, and what one could change.

    Nothing but the models' configs is downloaded, and a second is spent on measuring this machine.
    """
    from analyze.costs import describe_costs
    from analyze.experiment import load_experiment

    values = read_values(config)
    if not isinstance(values, dict):
        raise UserError(f"config {config[:200]!r}: has no keys; expected models, corpora, harvests, dictionaries")
    if model is not None:
        values["model"] = model
    files = {}
    for each in architecture or ():
        name, equals, file = each.partition("=")
        if not equals:
            raise UserError(f"--architecture: {each!r} is not <model>=<file>, such as gpt2=config.json")
        files[name] = pathlib.Path(file)
    named = config if config.endswith((".yaml", ".yml", ".json")) else "plan"
    experiment = load_experiment(values, named)
    print(describe_costs(experiment, pathlib.Path("results") / experiment.name, files, named))


@app.command()
def measure(
    dictionary: Folder,
    store: Stores,
    output: Output,
    corpus: Annotated[
        pathlib.Path | None, typer.Option(help="The prepared images its rows are of, if not beside the store.")
    ] = None,
    anchors: Anchors = None,
    embedding: Annotated[
        str | None,
        typer.Option(
            help="A site that the dictionary does not read, to compare rows by: gives the MonoSemanticity score."
        ),
    ] = None,
    embedding_store: Annotated[
        str | None, typer.Option(help="The store of that site, where it is another one with the same rows.")
    ] = None,
) -> None:
    """One pass over a store: what each latent does and stands for, how well sites are reconstructed, examples."""
    from analyze.activity import measure as measure_activity
    from analyze.monosemanticity import Embedding

    compared = None if embedding is None else Embedding(embedding, embedding_store)
    measure_activity(dictionary, store, output, corpus, anchors, compared)


@app.command()
def recovery(
    dictionary: Folder,
    store: Store,
    output: Output,
    anchors: Anchors = None,
) -> None:
    """Compare a dictionary with the ground truth of the bench."""
    from analyze.recovery import measure_recovery

    measure_recovery(dictionary, store, anchors, output)


@app.command()
def fidelity(
    dictionary: Folder,
    store: Stores,
    model: Annotated[
        str, typer.Option(help="The text model that its rows are of: YAML or JSON text or a file, id or directory.")
    ],
    corpus: Annotated[pathlib.Path, typer.Option(help="The prepared corpus that it read.")],
    output: Output,
) -> None:
    """What the model loses when it goes on with the reconstruction: cross-entropy and KL, on held-out texts."""
    from analyze.fidelity import measure_fidelity

    measure_fidelity(dictionary, store, read_model(model), corpus, output)


@app.command()
def geometry(
    dictionary: Folder,
    store: Stores,
    output: Output,
    model: Annotated[
        str | None,
        typer.Option(
            help="The text model that the last site written is of: YAML or JSON text or a file, id or directory."
        ),
    ] = None,
) -> None:
    """What each latent's direction is near: other latents, tokens (the logit lens), labels' means."""
    chosen = None if model is None else read_model(model)
    from analyze.geometry import measure_geometry

    measure_geometry(dictionary, store, chosen, output)


@app.command()
def stability(
    names: Names, results: Results, output: Annotated[pathlib.Path, typer.Option(help="stability.json")]
) -> None:
    """Match the latents of dictionaries that write the same sites: of two seeds, one to one."""
    from analyze.stability import measure_stability

    measure_stability(names, results, output)


@app.command()
def table(names: Names, results: Results, output: Annotated[pathlib.Path, typer.Option(help="recovery.csv")]) -> None:
    """Recovery of all dictionaries of an experiment, one line each."""
    from analyze.recovery import recovery_row, write_recovery_csv

    rows = [recovery_row(name, results / "train" / name, results / "analyze" / name) for name in names]
    write_recovery_csv(rows, output)


@app.command()
def theory(output: Annotated[pathlib.Path, typer.Option(help="theory.json")]) -> None:
    """Check the theorems of arXiv 2512.05534 numerically, on seeded instances."""
    from analyze.theory.page import theory_page
    from harvest.files import make_folder, write_json

    make_folder(output.parent)
    write_json(output, theory_page())


@app.command()
def report(
    experiment: Annotated[str, typer.Argument(help="The experiment's name.")],
    names: Names,
    results: Results,
    output: Annotated[pathlib.Path, typer.Option(help="The report's folder.")],
    model: Annotated[
        list[str] | None, typer.Option(help="`<harvest>=<name>`: what a harvest's model is called; repeated.")
    ] = None,
    single_file: Annotated[
        pathlib.Path | None, typer.Option(help="Also write the whole report into this one HTML file, if it is small.")
    ] = None,
) -> None:
    """Write the HTML report from measurement files."""
    from analyze.report.build import build
    from analyze.report.single import write_single_file

    dictionaries = [(name, results / "analyze" / name, results / "train" / name) for name in names]
    manifests = sorted(results.glob("harvest/*/activations.manifest.json"))
    table = results / "recovery.csv"
    truth = (table, results / "theory.json") if table.exists() else None
    models = {harvest: called for harvest, _, called in (each.partition("=") for each in model or ())}
    build(experiment, dictionaries, manifests, output, truth, results / "stability.json", models)
    if single_file is not None:
        write_single_file(output, single_file)


main(app)
