"""What a measurement is, and how it is written down."""

import statistics
from typing import Any


def record(name: str, ours: list[float], peer: list[float] | None, unit: str, how: str) -> dict[str, Any]:
    """One line of the table. `ours[i]` and `peer[i]` were measured right after one another, so a machine that is busy
    now and then slows both: the ratio is the median of the pairs' ratios, not the ratio of the medians."""
    return {
        "name": name,
        "ours": statistics.median(ours),
        "peer": statistics.median(peer) if peer else None,
        "ratio": statistics.median(a / b for a, b in zip(ours, peer, strict=True)) if peer else None,
        "unit": unit,
        "how": how,
    }
