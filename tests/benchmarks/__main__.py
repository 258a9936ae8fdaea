"""Run the benchmarks, print a table, and write `results/benchmarks.json`."""

import importlib
import pathlib
import pkgutil
from typing import Annotated, Any

import typer

import tests.benchmarks
from harvest.errors import UserError, main
from harvest.files import make_folder, read_json, write_json

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)

NAMES = sorted(module.name for module in pkgutil.iter_modules(tests.benchmarks.__path__))
BENCHMARKS = [name for name in NAMES if name not in ("__main__", "measure", "peers")]


@app.command()
def bench(
    names: Annotated[list[str] | None, typer.Argument(help=f"Some of {', '.join(BENCHMARKS)}; all by default.")] = None,
    output: Annotated[pathlib.Path, typer.Option(help="Where the figures go.")] = pathlib.Path(
        "results/benchmarks.json"
    ),
) -> None:
    """Each benchmark runs ours and its peer in turn and gives the median of the pairs' ratios (more than 1: ours is
    more). Figures in the output that are not measured now stay."""
    for name in names or []:
        if name not in BENCHMARKS:
            raise UserError(f"{name}: no such benchmark; there are {', '.join(BENCHMARKS)}")
    make_folder(output.parent)
    figures: dict[str, dict[str, Any]] = {}
    if output.exists():
        figures = {figure["name"]: figure for figure in read_json(output, "benchmarks")}
    for name in names or BENCHMARKS:
        found = importlib.import_module(f"tests.benchmarks.{name}").run()
        figures |= {figure["name"]: figure for figure in found}
        write_json(output, list(figures.values()))
        print(table(found), flush=True)


def table(figures: list[dict[str, Any]]) -> str:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"

    lines = []
    for figure in figures:
        values = [number(figure[key]) for key in ("ours", "peer", "ratio")]
        lines.append("{:<44}{:>10} ours {:>10} peer {:>8} ratio  {}".format(figure["name"], *values, figure["unit"]))
        lines.append(f"    {figure['how']}")
    return "\n".join(lines)


if __name__ == "__main__":
    main(app)
