"""`snakemake --lint` has findings for every workflow without conda or containers; anything else it finds is an error."""

import subprocess
import sys

EXPECTED = "* Specify a conda environment or container for each rule.:"


def main() -> int:
    run = subprocess.run(["snakemake", "--lint"], capture_output=True, text=True)
    findings = [line.strip() for line in run.stdout.splitlines() if line.strip().startswith("* ")]
    if not findings:
        print(run.stdout, run.stderr, sep="\n")
        return run.returncode
    unexpected = [finding for finding in findings if finding != EXPECTED]
    print("\n".join(unexpected) or f"snakemake --lint: nothing but the conda directive ({len(findings)} rules)")
    return 1 if unexpected else 0


if __name__ == "__main__":
    sys.exit(main())
