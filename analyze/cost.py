"""What a run cost, said at its end."""

import pathlib
import resource


def print_cost(report: pathlib.Path, seconds: float) -> None:
    """The report's path, the run's time, and the peak memory of its largest process (as the system counted it)."""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"\nreport: {report}\ntook {seconds / 60:.1f} min, at most {peak:.2f} GiB of memory")
