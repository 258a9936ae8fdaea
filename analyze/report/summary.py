"""What was run, in a few lines, for the top of the report."""

from collections.abc import Iterable
from typing import Any

from analyze.report.formats import duration, size


def what_was_run(dictionaries: list[dict[str, Any]], harvests: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Models, corpora, rows, dictionaries, seeds, cost and versions, as far as the files say them."""
    trained = [d["training"] for d in dictionaries if d["training"]["seconds"] is not None]
    loaded = [d["training"]["loaded"] for d in dictionaries if "loaded" in d["training"]]
    versions = _distinct(f"{name} {v}" for d in dictionaries for name, v in (d["training"]["versions"] or {}).items())
    found = [
        ("model", _distinct(map(_model, harvests))),
        ("corpus", _distinct(_corpus(harvest) for harvest in harvests)),
        ("rows", _distinct(f"{h['manifest']['rows']:,} in {h['name']}" for h in harvests)),
        ("dictionaries", f"{len(trained)} trained" + (f", {len(loaded)} loaded" if loaded else "")),
        ("seeds", _distinct(str(t["spec"]["seed"]) for t in trained)),
        ("training", _cost(trained)),
        ("versions", versions),
    ]
    return [(key, value) for key, value in found if value]


def _model(harvest: dict[str, Any]) -> str:
    """As the experiment calls it; else what the store knows, which is nothing of a directory's name."""
    source = harvest["manifest"]["source"]
    model = source.get("model")
    known = (model.get("id") or model.get("backend") or "") if isinstance(model, dict) else model or ""
    return harvest["model"] or ("Linear Representation Bench" if "bench" in source else str(known))


def _corpus(harvest: dict[str, Any]) -> str:
    spec = (harvest["corpus"] or {}).get("spec") or {}
    for key in ("dataset", "folder", "files", "documentation"):
        if (value := spec.get(key)) is not None:
            return f"{key} {', '.join(value) if isinstance(value, list) else value}"
    return "digits" if spec.get("digits") else ""


def _cost(trained: list[dict[str, Any]]) -> str:
    """Time of one process after the other; dictionaries that were trained in one pass say the same seconds."""
    if not trained:
        return ""
    seconds = sum(t["seconds"] / t.get("dictionaries_in_this_pass", 1) for t in trained)
    devices = _distinct(str(t["device"]) for t in trained)
    return f"{duration(seconds)}, at most {size(max(t['peak_memory_bytes'] for t in trained))} of memory, on {devices}"


def _distinct(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(text for text in texts if text))
