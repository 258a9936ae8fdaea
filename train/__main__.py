"""`python -m train`: a store -> a dictionary. `run` works the same under `torchrun` and `accelerate launch`."""

import pathlib
from typing import Annotated

import typer

from harvest.config import read_spec
from harvest.errors import main
from train.config import DictionarySpec

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True, help=__doc__)

Spec = Annotated[str, typer.Argument(help="A dictionary: YAML or JSON text, or a file of it.")]
Store = Annotated[pathlib.Path, typer.Option(help="The store to train on, activations.zarr.")]


@app.command()
def run(
    spec: Spec,
    store: Store,
    output: Annotated[pathlib.Path, typer.Option(help="The folder the dictionary goes to.")],
    checkpoints: Annotated[pathlib.Path, typer.Option(help="A folder for checkpoints; it goes when training is done.")],
    anchors: Annotated[pathlib.Path | None, typer.Option(help="The file that `anchors` made for this spec.")] = None,
    checkpoint_seconds: Annotated[float, typer.Option(help="Time between checkpoints.")] = 60,
) -> None:
    """Train one dictionary. A run that was stopped continues when the same command is given again."""
    checked = read_spec(spec, DictionarySpec)
    from train.loop import train

    train(checked, store, output, checkpoints, anchors, checkpoint_seconds)


@app.command()
def anchors(
    spec: Spec, store: Store, output: Annotated[pathlib.Path, typer.Option(help="The safetensors file to write.")]
) -> None:
    """Find the directions that a dictionary's first latents are held to."""
    checked = read_spec(spec, DictionarySpec)
    from harvest.store import Store as OpenStore
    from train.anchors import make_anchors

    make_anchors(checked, OpenStore(store), output)


main(app)
