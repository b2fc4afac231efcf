"""An ensemble of MPI runs, by libEnsemble through `BalsamExecutor`: which diffusivities has the plate?

The campaign asks for an allocation and compiles a mini-app (heat.c). A persistent generator proposes diffusivities;
each of libEnsemble's workers runs the mini-app with MPI and compares it with what was measured of the plate. Runs that
diverge are killed by the worker that watches them, runs that take too long by the manager.

Everything runs on this machine, on a service and a site that are started for it and taken down at the end.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import plate
from heat_allocf import interrupted, only_persistent_gens_in_time
from heat_genf import surrogate_gen
from heat_simf import heat_sim
from libensemble import Ensemble
from libensemble.specs import AllocSpecs, ExitCriteria, GenSpecs, LibeSpecs, SimSpecs
from report import Bar, Outcomes, plot, table
from rich.console import Console

from balsam_exec import ApplicationDefinition
from balsam_exec.embedded import Deployment
from balsam_exec.executors import BalsamExecutor
from balsam_exec.model.errors import BalsamError

SOURCE = Path(__file__).with_name("heat.c")


class Heat(ApplicationDefinition):
    """The mini-app, for one pair of diffusivities."""

    site = "local"
    command_template = "{{ heat }} {{ kx }} {{ ky }} {{ cells }} {{ step }} {{ end }}"


def compiled(source: str) -> str:
    """The path of the mini-app, made from its source where it is to run, by that machine's compiler and MPI.

    Raises RuntimeError if there are none.
    """

    class Compile(ApplicationDefinition):  # here, because classes of functions travel with their code
        """Makes the mini-app."""

        site = Heat.site

        def run(self, source: str) -> str:
            import shutil
            import subprocess
            import sys
            from pathlib import Path

            mpicc = shutil.which("mpicc") or shutil.which("mpicc", path=str(Path(sys.executable).parent))
            if mpicc is None:
                raise RuntimeError("the site has no mpicc: load an MPI module in job-template.sh, or pip install mpich")
            Path("heat.c").write_text(source)
            command = [mpicc, "-O2", "-std=gnu11", "heat.c", "-o", "heat", "-lm"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"is there a C compiler (apt-get install gcc libc6-dev)? {mpicc}: {done.stderr}")
            return str(Path("heat").absolute())

    return str(Compile.submit("heat/compile", source=source).result(timeout=300))


def ensemble(executor: BalsamExecutor, heat: str, options: argparse.Namespace, bar: Bar) -> Ensemble:
    """The ensemble, as libEnsemble knows it; `heat` is the path of the mini-app."""
    found = Ensemble(
        executor=executor,
        libE_specs=LibeSpecs(
            comms="local",
            nworkers=options.workers,
            gen_on_manager=True,
            kill_canceled_sims=True,
            use_workflow_dir=True,
            workflow_dir_path=options.directory,
            reuse_output_dir=True,
            stats_fmt={"task_timing": True},
            live_data=bar,
        ),
        sim_specs=SimSpecs(
            sim_f=heat_sim,
            inputs=["k"],
            outputs=[("f", float), ("times", float, (plate.READINGS,)), ("status", int), ("job", int)],
            user={
                "heat": heat,
                "workdir": f"run{executor.allocations[-1].id}",
                "cells": options.cells,
                "num_procs": options.ranks,
                "max_tasks_per_node": options.workers,
            },
        ),
        gen_specs=GenSpecs(
            gen_f=surrogate_gen,
            persis_in=["k", "f", "times"],
            outputs=[("k", float, (2,))],
            initial_batch_size=options.workers,
            user={"lb": plate.LOWER, "ub": plate.UPPER, "measured": plate.measured()},
        ),
        alloc_specs=AllocSpecs(
            alloc_f=only_persistent_gens_in_time, user={"async_return": True, "patience": options.patience}
        ),
        exit_criteria=ExitCriteria(sim_max=options.sims),
    )
    found.add_random_streams(seed=options.seed)
    return found


def run(options: argparse.Namespace, console: Console) -> int:
    """The campaign, on the configured service, at the site of the apps. The exit code."""
    executor = BalsamExecutor(workflow_name="heat")
    executor.register_app(Heat, app_name="heat")
    allocation = executor.submit_allocation(
        site_id=Heat.site, num_nodes=1, wall_time_min=120, queue=options.queue, project=options.project
    )
    started = time.monotonic()
    try:
        heat = compiled(SOURCE.read_text())
        with Bar(options.sims, console) as bar, interruptible():
            campaign = ensemble(executor, heat, options, bar)
            H, _, _ = campaign.run()
    finally:
        executor.revoke_allocation(allocation)
    allocation.wait(timeout=120)
    campaign.save_output("heat")
    show(H, options.directory, console)
    console.print(f"{time.monotonic() - started:.0f} s in allocation {allocation.id}, which is {allocation.state}.")
    if interrupted.is_set():
        raise KeyboardInterrupt
    return 0


def show(H: Any, directory: Path, console: Console) -> None:
    """The table and the plots of a history."""
    outcomes = Outcomes(H)
    if len(outcomes.completed):
        console.print(table(outcomes))
        if find_spec("matplotlib"):
            console.print("Plots:", *plot(H, outcomes, directory), soft_wrap=True)
        else:
            console.print("No plots: pip install matplotlib")
    console.print(outcomes)


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C cancels what runs and ends the ensemble in order; a second one ends it at once.

    In a terminal it reaches libEnsemble's workers, too: they go on, and hear of it from their manager.
    """
    manager = os.getpid()

    def interrupt(signum: int, frame: Any) -> None:
        if os.getpid() == manager:
            interrupted.set()
            signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def parser(description: str | None, directory: str) -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--directory", type=absolute, default=directory, help="where everything is kept")
    found.add_argument("--sims", type=int, default=40, help="runs of the mini-app")
    found.add_argument("--workers", type=int, default=2, help="runs at a time")
    found.add_argument("--ranks", type=int, default=2, help="MPI ranks of each run")
    found.add_argument("--cells", type=int, default=128, help="cells of the plate along each axis, a multiple of 4")
    found.add_argument(
        "--patience", type=float, default=3.0, help="kill runs that take so many times as long as the median"
    )
    found.add_argument("--queue", default="local", help="of the site's batch scheduler")
    found.add_argument("--project", default="local", help="that is charged for the allocation")
    found.add_argument("--seed", type=int, default=1, help="of the generator's random numbers")
    return found


def absolute(path: str) -> Path:
    return Path(path).absolute()


def give_cores(deployment: Deployment, cores: int) -> None:
    """Have allocations count so many cores on this machine: ranks then share them, rather than wait for each other."""
    settings = deployment.home / "site" / "settings.yml"
    settings.write_text(re.sub("^cores:.*$", f"cores: {cores}", settings.read_text(), flags=re.MULTILINE))


def use(home: Path) -> None:
    """Let this program find the service and the credentials of `home`, and no others."""
    os.environ["BALSAM_HOME"] = str(home)
    for name in ("BALSAM_URL", "BALSAM_TOKEN", "BALSAM_SITE"):
        os.environ.pop(name, None)


def main() -> int:
    options = parser(__doc__, "heat-run").parse_args()
    console = Console()
    with Deployment.start(options.directory / "balsam", temporary=True) as deployment:
        use(deployment.home)
        give_cores(deployment, options.workers * options.ranks)
        return run(options, console)


def report_errors(main: Any) -> int:
    """The exit code of `main`; what goes wrong outside of this program is told in a line."""
    try:
        return int(main())
    except (BalsamError, RuntimeError, TimeoutError) as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; everything has been shut down.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(report_errors(main))
