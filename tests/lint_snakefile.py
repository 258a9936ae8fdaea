"""`snakemake --lint` complains of any workflow without conda or containers; anything else it finds is an error."""

import pathlib
import subprocess
import sys

EXPECTED = "* Specify a conda environment or container for each rule.:"


def main() -> int:
    program = str(pathlib.Path(sys.executable).parent / "snakemake")
    run = subprocess.run([program, "--lint"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    findings = [line.strip() for line in run.stdout.splitlines() if line.strip().startswith("* ")]
    if not findings:
        print(run.stdout)
        return run.returncode
    unexpected = [finding for finding in findings if finding != EXPECTED]
    print("\n".join(unexpected) or f"snakemake --lint: nothing but the conda directive ({len(findings)} rules)")
    return 1 if unexpected else 0


if __name__ == "__main__":
    sys.exit(main())
