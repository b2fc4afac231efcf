"""libEnsemble: simulations that run one `true` each through `BalsamExecutor`, MPIExecutor and Executor; 2 workers."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import median

from balsam_exec.embedded import Deployment
from benchmarks.harness import ROOT, Report, main, ratios, take_turns


def rate(kind: str, sims: int, below: str, **environment: str) -> float:
    """Simulations a second, without the start of workers and launchers."""
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/ensemble.py", kind, str(sims)],
        cwd=tempfile.mkdtemp(dir=below),
        # mpiexec is installed beside the interpreter.
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"the ensemble with {kind} failed:\n{done.stdout}\n{done.stderr}")
    return float(json.loads(done.stdout.splitlines()[-1])["rate"])


def ours(sims: int, below: str) -> float:
    with Deployment.start(temporary=True) as deployment:
        return rate("balsam", sims, below, BALSAM_HOME=str(deployment.home))


def measure(options: argparse.Namespace) -> Report:
    # Of one round nothing is removed before the last: on ext4 the next one would wait for that.
    with tempfile.TemporaryDirectory() as below:
        rates = take_turns(
            {
                "BalsamExecutor": lambda: ours(options.sims, below),
                "MPIExecutor": lambda: rate("mpi", options.sims, below),
                "Executor": lambda: rate("plain", options.sims, below),
            },
            options.rounds,
        )
    versions = f"libEnsemble {version('libensemble')}, mpich {version('mpich')} of PyPI"
    report = Report(f"{options.sims} simulations of libEnsemble, one `true` each, 2 workers ({versions})")
    for name, values in rates.items():
        report.add(name, values, "sims/s")
    against = ratios(rates["BalsamExecutor"], rates["MPIExecutor"])
    report.add("BalsamExecutor / MPIExecutor", against, "x", "at least 1", median(against) >= 1)
    return report


if __name__ == "__main__":
    main(measure, sims=200)
