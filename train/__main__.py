"""`python -m train SPEC`: train a dictionary from a store; also under `torchrun` and `accelerate launch`."""

import pathlib
from typing import Annotated

import typer

from harvest.config import read_spec
from harvest.errors import main
from train.config import DictionarySpec

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def train(
    spec: Annotated[str, typer.Argument(help="A dictionary: YAML or JSON text, or a file of it.")],
    store: Annotated[pathlib.Path, typer.Option(help="The store to train on, activations.zarr.")],
    output: Annotated[pathlib.Path, typer.Option(help="The folder the dictionary goes to.")],
    checkpoints: Annotated[pathlib.Path, typer.Option(help="A folder for checkpoints; it goes when training is done.")],
    checkpoint_seconds: Annotated[float, typer.Option(help="Time between checkpoints.")] = 60,
) -> None:
    """Train one dictionary. A run that was stopped continues when the same command is given again."""
    checked = read_spec(spec, DictionarySpec)
    from train import loop

    loop.train(checked, store, output, checkpoints, checkpoint_seconds)


main(app)
