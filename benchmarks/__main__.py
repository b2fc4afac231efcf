"""`make bench`: every benchmark in turn, each in a process of its own; tables to stdout, JSON to benchmarks/results."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.harness import ROOT

RESULTS = ROOT / "benchmarks/results"
NAMES = (
    "pool_noop",
    "parsl_apps",
    "libensemble_sims",
    "commands",
    "hooks",
    "kill",
    "dag",
    "bulk_create",
    "scaling",
    "startup",
    "slurm_array",
    "slurm_start",
    "slurm_campaign",
    "elastic_sim",
)


def main() -> int:
    failed = 0
    for name in NAMES:
        print(f"--- {name}", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(RESULTS / f"{name}.json"), *sys.argv[1:]]
        failed += subprocess.run(command, cwd=ROOT, check=False).returncode != 0
        print()
    return failed


if __name__ == "__main__":
    sys.exit(main())
