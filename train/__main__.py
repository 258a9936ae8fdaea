"""`python -m train`: a store -> dictionaries. `run` works the same under `torchrun` and `accelerate launch`."""

import pathlib
from typing import Annotated

import typer

from harvest.config import read_spec
from harvest.errors import UserError, main
from train.config import DictionarySpec, LoadSpec

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True, help=__doc__)

Spec = Annotated[str, typer.Argument(help="A dictionary: YAML or JSON text, or a file of it.")]
Store = Annotated[
    list[str],
    typer.Option(
        help="The store of the sites it reads, activations.zarr or its URL; repeated for several with the same rows."
    ),
]


@app.command()
def run(
    specs: Annotated[list[str], typer.Argument(help="Dictionaries: YAML or JSON text, or files of it.")],
    store: Store,
    output: Annotated[list[pathlib.Path], typer.Option(help="The folder a dictionary goes to.")],
    checkpoints: Annotated[
        list[pathlib.Path], typer.Option(help="A folder for checkpoints; it goes when training is done.")
    ],
    anchors: Annotated[
        list[pathlib.Path] | None, typer.Option(help="The file that `anchors` made for a spec that has anchors.")
    ] = None,
    checkpoint_seconds: Annotated[float, typer.Option(help="Time between checkpoints.")] = 60,
    memory: Annotated[int, typer.Option(help="MiB of rows in memory at most, in each process.")] = 2048,
) -> None:
    """Train a dictionary, or several in one pass over the store. A run that was stopped continues when the same command
    is given again; SIGTERM makes a checkpoint first.

    For several, repeat --output and --checkpoints, one for each dictionary in their order, and --anchors, one for each
    that has anchors. They must have the same batch, seed, holdout, tokens and split, and come out as if trained
    alone.
    """
    checked = [read_spec(spec, DictionarySpec) for spec in specs]
    anchored = [spec for spec in checked if spec.anchors is not None]
    given = {"output": (output, checked), "checkpoints": (checkpoints, checked), "anchors": (anchors or [], anchored)}
    for option, (paths, wanted) in given.items():
        if len(paths) != len(wanted):
            what = "dictionaries with anchors" if option == "anchors" else "dictionaries"
            raise UserError(
                f"--{option}: {len(paths)} given for {len(wanted)} {what}; give one for each, in their order"
            )
    from train.loop import train
    from train.run import Job

    files = iter(anchors or [])
    jobs = [
        Job(spec, folder, kept, next(files) if spec.anchors is not None else None)
        for spec, folder, kept in zip(checked, output, checkpoints, strict=True)
    ]
    train(jobs, store, checkpoint_seconds, memory * 2**20)


@app.command()
def load(
    spec: Spec, store: Store, output: Annotated[pathlib.Path, typer.Option(help="The folder the dictionary goes to.")]
) -> None:
    """Take a dictionary from elsewhere: `load` in its spec is a SAELens directory or owner/name/folder@revision
    on the Hugging Face Hub. Only safetensors and JSON are read.
    """
    checked = read_spec(spec, LoadSpec)
    from train.elsewhere import load_elsewhere

    load_elsewhere(checked, store, output)


@app.command()
def anchors(
    spec: Spec, store: Store, output: Annotated[pathlib.Path, typer.Option(help="The safetensors file to write.")]
) -> None:
    """Find the directions that a dictionary's first latents are held to."""
    checked = read_spec(spec, DictionarySpec)
    from harvest.joined import open_store
    from train.anchors import make_anchors

    make_anchors(checked, open_store(store), output)


main(app)
