"""Train dictionaries from a store, in one pass over it, through Accelerate, from wherever the last run stopped."""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import accelerate
import torch

from harvest.errors import UserError
from harvest.joined import Place, open_store
from harvest.memory import keep_buffers, peak_bytes
from harvest.progress import progress
from train.batches import Batches
from train.config import SAME_IN_A_PASS, training_rows
from train.pools import MEMORY
from train.run import Job, Run

CHECKPOINT_SHARE = 1 / 20
"""Checkpoints take no more than this part of the time, however large the dictionaries."""
TERMINATED = 128 + signal.SIGTERM


def train(jobs: Sequence[Job], place: Place, every: float = 60, memory: int = MEMORY) -> None:
    """Write `cfg.json`, `sae_weights.safetensors`, `metrics.jsonl`, `resampling.jsonl` and, last, `training.json` into
    each job's output.

    Each dictionary comes out as if it were trained alone. A checkpoint of each is made every `every` seconds (0: after
    each step); they go when all are done. The same command after a kill continues from the newest ones. SIGTERM makes
    a checkpoint and exits with status 143.

    Args:
        memory: bytes of the store's rows that each process holds at most.

    Raises:
        UserError: jobs differ in what one pass must share, the store is unfinished, a loss is not finite.
    """
    _check(jobs)
    store = open_store(place)
    store.check_finished()
    keep_buffers()
    # Gradients are kept once, not also in the messages; what else is in the weights is the same everywhere by itself.
    shared = accelerate.DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)
    accelerator = accelerate.Accelerator(kwargs_handlers=[shared])
    spec = jobs[0].spec
    rows = training_rows(store.rows, spec.holdout)
    runs = [Run(job, store, accelerator) for job in jobs]
    ranks = runs[0].trainer.ranks
    batches = Batches(
        store,
        [site for run in runs for site in run.trainer.sites],
        spec.batch,
        spec.seed,
        rows,
        memory,
        accelerator.device,
        ranks.row_share,
        ranks.row_shares,
    )
    for run in runs:
        run.start()
    first = min(run.trainer.step for run in runs)
    begun = time.perf_counter()
    _steps(runs, batches, first, every)
    seconds = time.perf_counter() - begun
    for run in runs:
        run.finish(
            {
                "widths": {site: store.widths[site] for site in run.trainer.sites},
                "store": store.fingerprint,
                "rows_trained_on": rows,
                "seconds": seconds,
                "tokens_per_second": (run.trainer.steps - first) * spec.batch / seconds,
                "peak_memory_bytes": peak_bytes(),
                "processes": accelerator.num_processes,
                "dictionaries_in_this_pass": len(runs),
                "device": str(accelerator.device),
            }
        )
    for run in runs if accelerator.is_main_process else []:
        run.saved.remove()  # only now that all are whole
    accelerator.wait_for_everyone()


def _check(jobs: Sequence[Job]) -> None:
    """What is wrong with the jobs, before anything is opened."""
    for job in jobs:
        for key in SAME_IN_A_PASS:
            ours, theirs = getattr(jobs[0].spec, key), getattr(job.spec, key)
            if ours != theirs:
                raise UserError(
                    f"{key}: {ours} for {jobs[0].output} and {theirs} for {job.output}: "
                    "dictionaries that are trained in one pass must have the same"
                )
    for what in ("output", "checkpoints"):
        folders = [getattr(job, what) for job in jobs]
        if again := {folder for folder in folders if folders.count(folder) > 1}:
            raise UserError(f"--{what}: {again.pop()} is given twice; each dictionary needs its own")


def _steps(runs: Sequence[Run], batches: Batches, first: int, every: float) -> None:
    """The loop proper. A run whose checkpoint is ahead of the others' waits for them."""
    accelerator, steps = runs[0].accelerator, runs[0].trainer.steps
    checkpoint_at = time.monotonic() + every
    with (
        _termination() as terminated,
        progress(steps * batches.batch, "train", done=first * batches.batch, shown=accelerator.is_main_process) as bar,
    ):
        for step, batch in enumerate(batches.iterate(first, steps), first):
            behind = [run for run in runs if run.trainer.step == step]
            lines = [run.train_on(batch) for run in behind]
            if step + 1 == steps:
                bar.update(batches.batch)
                break
            due = accelerator.is_main_process and time.monotonic() >= checkpoint_at
            stop, due = _agreed(accelerator, terminated.is_set(), due)
            if stop or due:
                started = time.monotonic()
                for run in behind:
                    run.checkpoint()
                now = time.monotonic()
                checkpoint_at = now + (max(every, (now - started) / CHECKPOINT_SHARE) if every else 0)
            if stop:
                bar.disable = True
                _leave(accelerator, step + 1)
            with contextlib.suppress(BrokenPipeError):  # whoever reads the log may be gone before SIGTERM comes
                if lines and lines[0]:
                    bar.set_postfix(loss=f"{lines[0]['loss']:.4f}", l0=f"{lines[0]['l0']:.1f}", refresh=False)
                bar.update(batches.batch)


def _agreed(accelerator: accelerate.Accelerator, *flags: bool) -> list[bool]:
    """Flags that are set in any process are set in all."""
    if accelerator.num_processes == 1:
        return list(flags)
    votes = accelerator.reduce(torch.tensor(flags, dtype=torch.float32, device=accelerator.device), "sum")
    return [vote > 0 for vote in votes.tolist()]


@contextlib.contextmanager
def _termination() -> Iterator[threading.Event]:
    """Set by SIGTERM, which a cluster sends before it takes the machine away."""
    asked = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(accelerator: accelerate.Accelerator, step: int) -> None:
    if accelerator.is_main_process:
        with contextlib.suppress(BrokenPipeError):
            print(f"\nstopped by SIGTERM: checkpoint at step {step}; the same command continues", file=sys.stderr)
    accelerator.wait_for_everyone()
    raise SystemExit(TERMINATED)
