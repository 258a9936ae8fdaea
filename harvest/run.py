"""Fill a store from a source, shard by shard; whatever is already there is kept."""

import contextlib
import fcntl
import pathlib
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tqdm import tqdm

from harvest.errors import UserError
from harvest.files import existing, make_folder, write_json
from harvest.location import Location, check_location
from harvest.memory import keep_buffers
from harvest.progress import progress
from harvest.source import Source
from harvest.store import Store
from harvest.writer import StoreWriter

_CREATION = 2**40  # the byte of the lock file that stands for creating the store; no shard has this number


def harvest(
    source: Source,
    store: Location,
    manifest: pathlib.Path | None,
    aliases: Mapping[str, str],
    part: tuple[int, int] = (1, 1),
) -> None:
    """Write part `i` of `n` of a store; once every shard is there, write the manifest, if one is wanted.

    Parts own disjoint ranges of shards and may run anywhere; the bytes are the same for any number of parts. There is
    nothing to lock in an object storage: two harvests of the same shard would only write the same objects twice.
    Raises `UserError` where the store belongs to other facts, is being written by another process, or would not fit.
    """
    if source.rows == 0:
        raise UserError("the corpus is empty: there is no row to harvest")
    keep_buffers()
    store = check_location(store, "store")
    writer = StoreWriter(store, source, aliases)
    writer.check()
    index, parts = part
    first, last = writer.shards * (index - 1) // parts, writer.shards * index // parts
    folder = store if isinstance(store, pathlib.Path) else None
    if folder:
        _check_disk(folder, writer)
    if manifest is not None:
        make_folder(manifest.parent)
    if folder:
        make_folder(folder)
    with _locked(folder, _CREATION, 1, wait=True):
        writer.sweep([None])
        writer.create()
    if first < last:
        with _locked(folder, first, last - first):
            writer.sweep(range(first, last))
            _write_shards(writer, writer.missing(first, last))
    whole = Store(store)
    if manifest is not None:
        with _locked(folder or manifest.parent, _CREATION, 1, wait=True):
            if whole.finished.all():
                write_json(manifest, manifest_of(whole))


def manifest_of(store: Store) -> dict[str, Any]:
    """What a finished store holds; equal for equal stores."""
    sites = {}
    for site, width in store.widths.items():
        found = store.statistics(site)
        total = float(found.variance.sum())
        sites[site] = {"width": width, "mean_norm": found.mean_norm, "total_variance": total}
    return {
        "fingerprint": store.fingerprint,
        "rows": store.rows,
        "dtype": store.group.attrs["dtype"],
        "shards": len(store.finished),
        "sites": sites,
        "labels": {name: len(names) for name, names in store.labels.items()},
        "source": store.facts,
        "created_with": store.group.attrs["created_with"],
    }


def _write_shards(writer: StoreWriter, shards: list[int]) -> None:
    """Compute shards in order while one thread writes the one before."""
    if not shards:
        return
    rows = sum(stop - start for start, stop in map(writer.range, shards))
    with ThreadPoolExecutor(1) as thread, progress(rows, "harvest") as bar:
        pending = None
        begun = time.perf_counter()
        for shard in shards:
            start, stop = writer.range(shard)
            sites, columns = writer.source.read_sites(start, stop), writer.source.read_columns(start, stop)
            if pending is None:
                _announce(writer, rows, (time.perf_counter() - begun) / (stop - start) * rows)
            else:
                pending.result()
            pending = thread.submit(writer.write, shard, sites, columns)
            bar.update(stop - start)
        assert pending is not None
        pending.result()


def _announce(writer: StoreWriter, rows: int, seconds: float) -> None:
    local = isinstance(writer.path, pathlib.Path)
    free = f"{_size(shutil.disk_usage(writer.path).free)} free, " if local else ""
    tqdm.write(
        f"{writer.path}: {rows:,} of {writer.source.rows:,} rows to harvest, {len(writer.source.widths)} sites, "
        f"{_size(writer.bytes)} in all, {free}about {seconds / 60:.1f} min"
    )


def _check_disk(store: pathlib.Path, writer: StoreWriter) -> None:
    """Refuse before the first write; what a resumed store already holds is not needed again."""
    there = existing(store)
    held = sum(map(_file_size, store.rglob("*")))
    free, needed = shutil.disk_usage(there).free, writer.bytes - held
    if needed > free:
        raise UserError(
            f"store {store}: needs {_size(needed)} more, {_size(free)} are free in {there}; take fewer tokens or sites"
        )


def _file_size(path: pathlib.Path) -> int:
    """0 where it is no file, or no longer: another part may be writing."""
    with contextlib.suppress(FileNotFoundError):
        found = path.stat()
        return found.st_size if stat.S_ISREG(found.st_mode) else 0
    return 0


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


@contextlib.contextmanager
def _locked(folder: pathlib.Path | None, start: int, length: int, wait: bool = False) -> Iterator[None]:
    """Hold some bytes of a lock file, each of which stands for a shard; a second harvest that wants one is told so.

    The system drops the lock when a process dies, however it dies.
    """
    if folder is None:
        yield
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), length, start)
        except BlockingIOError:
            raise UserError(
                f"store {folder}: another harvest is writing these shards; wait for it or stop it"
            ) from None
        yield
