"""Real Snakemake runs in a folder of their own."""

import subprocess
import sys
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[2]
SITES = ["layers.40%.resid_post", "layers.40%.mlp_in", "layers.40%.mlp_out"]


def write_config(folder: Path, model: Path) -> None:
    """The demo's config but for sizes: 16 shards of some 125 rows, and two dictionaries of 48 latents."""
    dictionary = {"harvest": "docs", "latents": 48, "sparsity": {"topk": {"l0": 4}}, "tokens": 6000, "batch": 256}
    config = {
        "models": {"tiny": {"id": str(model), "dtype": "float32"}},
        "corpora": {"docs": {"documentation": ["tqdm", "typer"], "tokens": 2000, "context": 48}},
        "harvests": {"docs": {"model": "tiny", "corpus": "docs", "sites": SITES, "batch_tokens": 64}},
        "dictionaries": {
            "sae": {**dictionary, "reads": SITES[:1]},
            "transcoder": {**dictionary, "reads": SITES[1:2], "writes": SITES[2:]},
        },
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))


def snakemake(folder: Path, *arguments: str) -> list[str]:
    """The command that runs the repository's workflow in `folder`. `arguments` come first: targets, then options.

    Most of the time is processes starting, which two can do at once: jobs have one thread each.
    """
    program = str(Path(sys.executable).parent / "snakemake")
    where = ["--directory", str(folder), "--snakefile", str(REPOSITORY / "Snakefile")]
    return [
        program,
        *arguments,
        "--cores",
        "2",
        "--max-threads",
        "1",
        *where,
        "--configfile",
        str(folder / "tiny.yaml"),
    ]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(snakemake(folder, *arguments), capture_output=True, text=True)


def store_bytes(harvest: Path) -> dict[str, bytes]:
    files = [*(harvest / "activations.zarr").rglob("*"), harvest / "activations.manifest.json"]
    return {str(path.relative_to(harvest)): path.read_bytes() for path in files if path.is_file()}
