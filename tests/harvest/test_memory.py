"""The peak that a run reports is its own, not that of the process that started it."""

import json
import subprocess
import sys
from pathlib import Path

MIB = 2**20


def test_a_process_does_not_inherit_the_peak_of_the_one_that_started_it() -> None:
    held = bytearray(300 * MIB)
    held[::4096] = b"\1" * len(held[::4096])
    said = subprocess.run(
        [sys.executable, "-c", "from harvest.memory import peak_bytes; print(peak_bytes())"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert MIB < int(said.stdout) < 200 * MIB


def test_the_peak_stays_when_the_memory_is_gone() -> None:
    command = (
        "from harvest.memory import peak_bytes; held = bytearray(b'x' * (300 << 20)); del held; print(peak_bytes())"
    )
    said = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert int(said.stdout) > 300 * MIB


def test_memory_is_flat_in_the_length_of_the_corpus(tmp_path: Path) -> None:
    """200,000 tokens more are 77 MB more of activations; 2,150,000 tokens more, 28 MB more of a corpus's arrays."""
    command = [sys.executable, "-m", "tests.harvest.flat_memory_case", str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    peaks = json.loads(said.stdout.splitlines()[-1])
    _, short, long = peaks["harvest"]
    assert long - short < 32 * MIB, peaks
    assert peaks["prepare"][-1] - long < 20 * MIB, peaks
