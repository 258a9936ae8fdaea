"""A dictionary from elsewhere, in the place of one that was trained here."""

import hashlib
import itertools
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any

import torch

from harvest.errors import UserError
from harvest.files import make_folder, write_json, write_text
from harvest.joined import Place, open_store
from harvest.store import Store
from train.config import DICTIONARY_FILES, DictionarySpec, LoadSpec
from train.dictionary import Dictionary
from train.files import load, save, versions
from train.sparsity import SPARSITIES
from train.sparsity.topk import TopK

ON_THE_HUB = re.compile(r"(?P<id>\w[\w.-]*/\w[\w.-]*)(?:/(?P<folder>\w[^/@]*(?:/\w[^/@]*)*))?(?:@(?P<revision>.+))?")
"""`owner/name/folder@revision`."""
RESIDUAL = re.compile(r"(?:layers|blocks)\.(\d+)\.(?:hook_)?(resid_pre|resid_post|attn_out|mlp_out)")
"""A site by its name here and in TransformerLens."""
STRETCHES, STRETCH_ROWS = 16, 256
"""Rows on which l0 is measured, where nothing says what it is."""
OF_TRAINING = (
    *("steps", "last", "rows_trained_on", "seconds", "tokens_per_second", "peak_memory_bytes", "processes"),
    *("dictionaries_in_this_pass", "device"),
)
"""What `training.json` says of training, and cannot say here."""


def load_elsewhere(spec: LoadSpec, place: Place, output: pathlib.Path) -> None:
    """Write what `train.loop.train` writes, for a dictionary that SAELens, or anyone with its layout, made.

    Latents and output stay those of the dictionary that is loaded. `training.json` says under `loaded` where it is from
    and what its `cfg.json` said; its `spec` has the keys of one that is trained, with null for what is not known and no
    holdout, as training saw none of these rows; l0 is TopK's k, or what was measured on some rows. The logs are empty.

    Raises:
        UserError: the dictionary cannot be found or read, its widths are not those of the sites, it is a transcoder
            and `writes` is not given or the other way round, or the store is unfinished.
    """
    store = open_store(place)
    store.check_finished()
    folder, commit = find(spec.load)
    dictionary, cfg = load(folder)
    reads, writes = ([store.site(site) for site in sites] for sites in (spec.reads, spec.written))
    _check(spec, dictionary, cfg, store, reads, writes)
    _warn(spec, cfg, reads)
    about = {
        "kind": spec.kind,
        "reads": reads,
        "writes": writes,
        "widths": {site: store.widths[site] for site in dict.fromkeys([*reads, *writes])},
        "store": store.fingerprint,
        "spec": _as_if_trained(spec, dictionary, store, reads),
        "versions": versions(),
    }
    make_folder(output)
    save(dictionary, output, about)
    try:
        for log in ("metrics", "resampling"):
            write_text(output / f"{log}.jsonl", "")
        loaded = {"from": spec.load, "commit": commit, **_source(folder, cfg)}
        write_json(output / "training.json", {**about, **dict.fromkeys(OF_TRAINING), "loaded": loaded})
    except OSError as error:
        raise UserError(f"output folder {output}: cannot be written ({error.strerror})") from None


def find(place: str) -> tuple[pathlib.Path, str | None]:
    """The directory of a dictionary, and its commit on the Hub. What is in the Hub's cache is not asked for again."""
    local = pathlib.Path(place).expanduser()
    if local.is_dir():
        return local, None
    match = ON_THE_HUB.fullmatch(place)
    if match is None:
        raise UserError(f"load: {place}: no such directory, and not as on the Hub, owner/name/folder@revision")
    import huggingface_hub

    huggingface_hub.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    inside = pathlib.PurePosixPath(match["folder"] or "")
    wanted = [str(inside / name) for name in DICTIONARY_FILES]
    why = ""
    for in_cache in (True, False):
        try:
            snapshot = huggingface_hub.snapshot_download(
                match["id"],
                revision=match["revision"],
                allow_patterns=[re.sub(r"([*?\[])", r"[\1]", file) for file in wanted],
                local_files_only=in_cache,
            )
        except Exception as error:  # a network has many ways to fail
            why = type(error).__name__
            continue
        if all(pathlib.Path(snapshot, file).is_file() for file in wanted):
            return pathlib.Path(snapshot, inside), pathlib.Path(snapshot).name
        why = "no such files"
    revision = f" --revision {match['revision']}" if match["revision"] else ""
    raise UserError(
        f"load: {place}: no directory here, not in the Hugging Face cache, and not to be had from the Hub ({why}); "
        f"with the Hub in reach, `hf download {match['id']} {' '.join(wanted)}{revision}` gets it"
    )


def _check(
    spec: LoadSpec, dictionary: Dictionary, cfg: dict[str, Any], store: Store, reads: list[str], writes: list[str]
) -> None:
    for key, sites, width in (
        ("reads", reads, dictionary.W_enc.shape[1]),
        ("writes", writes, dictionary.W_dec.shape[1]),
    ):
        widths = [store.widths[site] for site in sites]
        if sum(widths) != width:
            there = " + ".join(map(str, widths)) + (f" = {sum(widths)}" if len(widths) > 1 else "")
            raise UserError(
                f"{key}: {', '.join(sites)}: {there} wide, and the dictionary {spec.load} has {width} there"
            )
    if spec.kind == "transcoder" and dictionary.centered:
        raise UserError(f"writes: {', '.join(spec.written)}: {spec.load} is an SAE: leave it out")
    if spec.kind != "transcoder" and cfg["architecture"].endswith("transcoder"):
        raise UserError(f"writes: missing: {spec.load} is a {cfg['architecture']}; say which sites it writes")


def _warn(spec: LoadSpec, cfg: dict[str, Any], reads: list[str]) -> None:
    """What may be meant so, and is likely to be a mistake."""
    hook = cfg.get("metadata", {}).get("hook_name")
    theirs = canonical(str(hook))
    ours = canonical(reads[0].rpartition("/")[2]) if len(reads) == 1 else None
    if theirs and ours and theirs != ours:
        print(f"warning: {spec.load} is for {hook}, and reads {reads[0]}", file=sys.stderr)
    if cfg.get("normalize_activations") == "expected_average_only_in":
        print(
            f"warning: {spec.load}: activations were scaled in training (normalize_activations: "
            "expected_average_only_in); weights are taken as they are, as SAELens does: the factor must be in them",
            file=sys.stderr,
        )


def canonical(site: str) -> tuple[int, str] | None:
    """Layer and place, for names of which it is known what they are: what enters a layer left the one before."""
    match = RESIDUAL.fullmatch(site)
    if match is None:
        return None
    layer, place = int(match[1]), match[2]
    return (layer - 1, "resid_post") if place == "resid_pre" else (layer, place)


def _as_if_trained(spec: LoadSpec, dictionary: Dictionary, store: Store, reads: list[str]) -> dict[str, Any]:
    sparsity = dictionary.sparsity
    method = next(name for name, kind in SPARSITIES.items() if type(sparsity) is kind)
    l0 = sparsity.l0 if isinstance(sparsity, TopK) else measured_l0(dictionary, store, reads)
    return {
        **dict.fromkeys(DictionarySpec.model_fields),
        **spec.model_dump(),
        "latents": dictionary.latents,
        "sparsity": {method: {"l0": l0}},
        "holdout": 0.0,
        "skip": dictionary.W_skip is not None,
    }


@torch.inference_mode()
def measured_l0(dictionary: Dictionary, store: Store, reads: list[str]) -> float:
    """The mean number of active latents in rows from all over the store; never 0."""
    active = rows = 0
    for start, stop in _stretches(store.rows):
        codes = dictionary.encode(torch.cat([store.read(site, start, stop).float() for site in reads], 1))
        active, rows = active + int((codes.values_N > 0).sum()), rows + stop - start
    return max(active, 1) / rows


def _stretches(rows: int) -> Iterator[tuple[int, int]]:
    step = max(1, rows // STRETCHES)
    for start, end in itertools.pairwise([*range(0, rows, step), rows]):
        yield start, min(end, start + STRETCH_ROWS)


def _source(folder: pathlib.Path, cfg: dict[str, Any]) -> dict[str, Any]:
    """What a reader of the report may want to know of it."""
    metadata = cfg.get("metadata", {})
    said = {key: metadata.get(key) for key in ("model_name", "hook_name", "dataset_path", "sae_lens_version")}
    files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in DICTIONARY_FILES}
    return {"architecture": cfg["architecture"], **said, "sha256": files}
