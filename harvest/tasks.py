"""Passes over a store as Dask tasks: on this machine, or on the Dask scheduler whose address is set.

Dask's own setting `scheduler-address` says where it is (the environment's `DASK_SCHEDULER_ADDRESS`, which the config's
`dask` sets in every job). Its workers must see the same files under the same names.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dask
from dask.callbacks import Callback

from harvest.errors import UserError


def compute(
    tasks: Sequence[Any], at_once: int | None = 1, bar: Any = None, amounts: Mapping[str, int] | None = None
) -> list[Any]:
    """The results of delayed `tasks`, in their order.

    `at_once`: how many run together on this machine; None for one a core. One is right where a task's products use
    every core already. `bar` moves by `amounts[key]` when the task of that key is done; on a scheduler it only knows
    `tasks` themselves, not what these depend on.

    Raises `UserError` where no scheduler answers at the address.
    """
    amounts = amounts or {}
    if (address := dask.config.get("scheduler-address", None)) is not None:
        return _on_scheduler(address, tasks, bar, amounts)
    with _Progress(bar, amounts):
        return list(dask.compute(*tasks, scheduler="threads", num_workers=at_once))


def merged(tasks: Sequence[Any], merge: Callable[[Any, Any], Any]) -> Any:
    """A task for the results of all `tasks` merged, pairwise in a tree that keeps their order."""
    level, merge_later = list(tasks), dask.delayed(merge, pure=False)
    while len(level) > 1:
        pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
        level = [merge_later(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return level[0]


def _on_scheduler(address: str, tasks: Sequence[Any], bar: Any, amounts: Mapping[str, int]) -> list[Any]:
    from distributed import Client, as_completed

    try:
        client = Client(address)
    except (OSError, ValueError, TimeoutError) as error:
        raise UserError(
            f"dask: {address}: no scheduler answers there ({error}); start one with `dask scheduler`"
        ) from None
    with client:
        futures = client.compute(list(tasks))
        for future in as_completed(futures):
            if bar is not None and future.status == "finished":
                bar.update(amounts.get(future.key, 0))
        found: list[Any] = client.gather(futures)
    return found


class _Progress(Callback):  # type: ignore[misc]
    """Moves a bar by the amount of every task that is done."""

    def __init__(self, bar: Any, amounts: Mapping[str, int]) -> None:
        self.bar, self.amounts = bar, amounts
        super().__init__(posttask=self._after)

    def _after(self, key: str, *_: Any) -> None:
        if self.bar is not None:
            self.bar.update(self.amounts.get(key, 0))
