"""A Parsl dataflow on two executors: the phase transition of the Ising model, from a scan to a plot.

    configure -> simulate  for each temperature and start: a file, and a program that reads it (bash_app)
    simulate  -> measure   for each temperature: numpy over what its starts wrote
    measure   -> refine    where the susceptibility peaks, larger lattices are added (join_app)
    refine    -> tabulate -> plot

The many short tasks go to the executor `small`; the larger lattices to `large`, which gives each of them the node to
itself. On the way the process of one task is killed, as the kernel does when memory runs out, and the task is tried
again; one configuration is refused by the program, and left out. Then the same dataflow runs once more, from the
checkpoint.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import parsl
from parsl import File, bash_app, join_app, python_app
from parsl.app.errors import BashExitFailure
from parsl.config import Config
from parsl.dataflow.errors import DependencyError
from parsl.dataflow.memoization import BasicMemoizer, id_for_memo
from parsl.dataflow.taskrecord import TaskRecord
from parsl.executors import HighThroughputExecutor
from parsl.executors.base import ParslExecutor
from parsl.monitoring import MonitoringHub
from report import CRITICAL, Row, magnetizations, monitored, peak
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from balsam_exec.client.service import Service
from balsam_exec.embedded import Deployment
from balsam_exec.executors import BalsamParslExecutor

PROGRAM = Path(__file__).with_name("ising.py")
#: What the program exits with when a configuration makes no sense.
REFUSED = 2
RETRIES = 2
STARTS = 2  #: simulations for each temperature
CORES = len(os.sched_getaffinity(0))
SMALL, LARGE = 16, 48  #: sizes of the lattices


# -- the apps ----------------------------------------------------------------------------------------------------


@python_app(executors=["small"], cache=True)
def configure(temperature: float, size: int, sweeps: int, seed: int, outputs: Sequence[File] = ()) -> None:
    """Write the program's input."""
    import json
    from pathlib import Path

    point = {"temperature": temperature, "size": size, "sweeps": sweeps, "seed": seed}
    Path(outputs[0]).write_text(json.dumps(point))


@bash_app(executors=["small"], cache=True)
def simulate(
    python: str,
    program: str,
    inputs: Sequence[File] = (),
    outputs: Sequence[File] = (),
    stdout: str | None = None,
    stderr: str | None = None,
) -> str:
    """Run the program, from its input to its series."""
    import shlex

    return shlex.join([python, program, str(inputs[0]), str(outputs[0])])


@python_app(executors=["small"], cache=True)
def measure(temperature: float, size: int, inputs: Sequence[File] = ()) -> Row:
    """Averages over all starts at one temperature."""
    import numpy as np

    series = np.concatenate([np.loadtxt(file, delimiter=",", ndmin=2) for file in inputs])
    magnetization = np.abs(series[:, 1])
    return {
        "size": size,
        "temperature": temperature,
        "energy": float(series[:, 0].mean()),
        "magnetization": float(magnetization.mean()),
        "susceptibility": float(magnetization.var() * size**2 / temperature),
    }


@python_app(executors=["large"], cache=True)
def relax(
    temperature: float,
    size: int,
    sweeps: int,
    mishap: str = "",
    parsl_resource_specification: dict[str, Any] | None = None,
) -> Row:
    """A larger lattice, all spins of one colour of the checkerboard at a time, from the ordered state.

    Where the file `mishap` does not exist it is made, and the process of the task dies.
    """
    import os
    import signal
    from pathlib import Path

    import numpy as np

    if mishap and not Path(mishap).exists():
        Path(mishap).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    random = np.random.default_rng(size)
    spins = np.ones((size, size), dtype=np.int8)
    black = np.indices(spins.shape).sum(0) % 2 == 0
    energy, magnetization = np.empty(sweeps), np.empty(sweeps)
    for number in range(-sweeps // 5, sweeps):  # the first ones only bring the lattice to its temperature
        for colour in (black, ~black):
            field = sum(np.roll(spins, step, axis) for step in (1, -1) for axis in (0, 1))
            flips = random.random(spins.shape) < np.exp(-2 * spins * field / temperature)
            spins[colour & flips] *= -1
        if number >= 0:
            energy[number] = -(spins * (np.roll(spins, 1, 0) + np.roll(spins, 1, 1))).mean()
            magnetization[number] = abs(spins.mean())
    return {
        "size": size,
        "temperature": temperature,
        "energy": float(energy.mean()),
        "magnetization": float(magnetization.mean()),
        "susceptibility": float(magnetization.var() * spins.size / temperature),
    }


@join_app(cache=True)
def refine(
    rows: list[Row], count: int, size: int, sweeps: int, mishap: str, shape: dict[str, Any]
) -> list[Future[Row]]:
    """Larger lattices around the temperature where the susceptibility of `rows` peaks."""
    centre = peak(rows)
    temperatures = np.round(np.linspace(centre - 0.25, centre + 0.15, count), 3)
    return [
        relax(float(temperature), size, sweeps, mishap if number == 0 else "", parsl_resource_specification=shape)
        for number, temperature in enumerate(temperatures)
    ]


@python_app(executors=["small"], cache=True)
def tabulate(rows: list[Row], larger: list[Row], outputs: Sequence[File] = ()) -> None:
    """All rows, in one file."""
    import csv

    with open(outputs[0], "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows([*rows, *larger])


@python_app(executors=["small"], cache=True)
def plot(inputs: Sequence[File] = (), outputs: Sequence[File] = ()) -> None:
    """Magnetization and susceptibility over temperature, where matplotlib is installed."""
    import matplotlib
    import numpy as np

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = np.genfromtxt(inputs[0], delimiter=",", names=True)
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for size in np.unique(rows["size"]):
        of_size = np.sort(rows[rows["size"] == size], order="temperature")
        for axis, quantity in zip(axes, ("magnetization", "susceptibility"), strict=True):
            axis.plot(of_size["temperature"], of_size[quantity], ".-", label=f"{size:.0f} x {size:.0f}")
            axis.set(xlabel="temperature", ylabel=quantity)
    exact = np.linspace(rows["temperature"].min(), 2 / np.log(1 + np.sqrt(2)), 200)
    axes[0].plot(exact, np.clip(1 - np.sinh(2 / exact) ** -4, 0, None) ** 0.125, "k--", lw=1, label="infinite")
    axes[0].legend()
    figure.savefig(outputs[0])
    pyplot.close(figure)


@id_for_memo.register(File)
def _(file: File, output_ref: bool = False) -> bytes:
    """Files are known by where they are. Without this Parsl memoizes no app that takes one."""
    return file.url.encode()


# -- the dataflow ------------------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """How much to do, and where its files lie."""

    directory: Path
    points: int
    sweeps: int
    shape: dict[str, Any]  #: the resources of a larger lattice

    @property
    def temperatures(self) -> list[float]:
        """Those of the scan; the last one makes no sense."""
        return [*np.round(np.linspace(1.5, 3.5, self.points), 3).tolist(), 0.0]

    def name(self, temperature: float, start: int) -> str:
        """What the files of one simulation begin with."""
        return str(self.directory / "points" / f"T{temperature:.3f}-{start}")


class Outcome(NamedTuple):
    rows: list[Row]
    larger: list[Row]
    refused: dict[float, str]  #: the temperatures that could not be simulated, and what the program said
    files: list[str]


def scan(plan: Plan, progress: Progress) -> dict[float, Future[Row]]:
    """What is measured at each temperature."""
    bar = progress.add_task("simulations", total=len(plan.temperatures) * STARTS)
    measured = {}
    for temperature in plan.temperatures:
        series = []
        for start in range(STARTS):
            name = plan.name(temperature, start)
            point = configure(temperature, SMALL, plan.sweeps, start, outputs=[File(f"{name}.json")])
            simulation = simulate(
                sys.executable,
                str(PROGRAM),
                inputs=[point.outputs[0]],
                outputs=[File(f"{name}.csv")],
                stdout=f"{name}.out",
                stderr=f"{name}.err",
            )
            simulation.add_done_callback(lambda _: progress.advance(bar))
            series.append(simulation.outputs[0])
        measured[temperature] = measure(temperature, SMALL, inputs=series)
    return measured


def run(plan: Plan, progress: Progress) -> Outcome:
    """The whole dataflow, on the executors that are loaded."""
    (plan.directory / "points").mkdir(parents=True, exist_ok=True)
    rows, refused = [], {}
    for temperature, future in scan(plan, progress).items():
        try:
            rows.append(future.result())
        except DependencyError as error:
            if not all(refuses(cause) for cause, _ in error.dependent_exceptions_tids):
                raise
            refused[temperature] = Path(plan.name(temperature, 0) + ".err").read_text().splitlines()[-1]
    count = max(plan.points // 4, 2)
    bar = progress.add_task(f"{count} larger lattices", total=1)
    larger = refine(rows, count, LARGE, 4 * plan.sweeps, str(plan.directory / "mishap"), plan.shape)
    larger.add_done_callback(lambda _: progress.advance(bar))
    last = [tabulate(rows, larger, outputs=[File(str(plan.directory / "ising.csv"))])]
    if find_spec("matplotlib"):
        last.append(plot(inputs=[last[0].outputs[0]], outputs=[File(str(plan.directory / "ising.png"))]))
    files = [future.outputs[0].result().filepath for future in last]
    return Outcome(rows, larger.result(), refused, files)


# -- what it runs on ---------------------------------------------------------------------------------------------


def executors(service: Service | None) -> list[ParslExecutor]:
    """`small` and `large`: of ours, or without a service Parsl's own."""
    if service is None:
        return [
            HighThroughputExecutor(label="small", max_workers_per_node=CORES, address="127.0.0.1"),
            HighThroughputExecutor(label="large", max_workers_per_node=1, address="127.0.0.1"),
        ]
    return [
        BalsamParslExecutor(label="small", service=service, max_workers_per_node=CORES),
        BalsamParslExecutor(label="large", service=service, max_workers_per_node=1),
    ]


def refuses(error: BaseException) -> bool:
    """Whether the program refused its input, which it would do again."""
    return isinstance(error, BashExitFailure) and error.exitcode == REFUSED


def cost(error: BaseException, task: TaskRecord) -> float:
    """What a failure costs of the retries: all of them where another try makes no sense."""
    return RETRIES + 1 if refuses(error) else 1


def configuration(run_dir: Path, service: Service | None) -> Config:
    """Two executors, retries, a checkpoint after each task, monitoring."""
    return Config(
        executors=executors(service),
        retries=RETRIES,
        retry_handler=cost,
        strategy_period=1,  # seconds between looks at the blocks: the whole dataflow may take less than the usual 5
        memoizer=BasicMemoizer(checkpoint_mode="task_exit"),
        monitoring=MonitoringHub(workflow_name="ising", resource_monitoring_interval=0),
        run_dir=str(run_dir),
    )


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ctrl-C waits for the end of this, and never reaches the processes that are started here.

    Parsl cannot end without those of its monitoring, and what it has half started it does not clean up.
    """
    caught = []
    resource_tracker.ensure_running()  # it would unblock the signal when it starts
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # processes inherit it
    handler = signal.signal(signal.SIGINT, lambda *_: caught.append(True))  # numpy's threads do not
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
    if caught:
        raise KeyboardInterrupt


@contextmanager
def loaded(config: Config) -> Iterator[None]:
    """Parsl under this configuration, cleaned up in the end."""
    with ExitStack() as stack:
        with undisturbed():
            stack.enter_context(parsl.load(config))
        yield


# -- the program ------------------------------------------------------------------------------------------------


def campaign(name: str, plan: Plan, service: Service | None, console: Console) -> Outcome:
    """One run of the dataflow under a configuration of its own; says how long it took and what was done."""
    run_dir = plan.directory / "runinfo"
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with (
        loaded(configuration(run_dir, service)),
        Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress,
    ):
        started = time.monotonic()
        outcome = run(plan, progress)
        took = time.monotonic() - started
    console.print(f"{name}: {took:.1f} s; {monitored(run_dir / 'monitoring.db')}", highlight=False)
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=40, help="temperatures of the scan")
    parser.add_argument("--sweeps", type=int, default=1000, help="length of a simulation")
    parser.add_argument("--directory", type=Path, default=Path("parsl-run"), help="where everything is kept")
    parser.add_argument("--htex", action="store_true", help="run on Parsl's HighThroughputExecutor, to compare")
    options = parser.parse_args()
    if options.points < 2 or options.sweeps < 5:
        parser.error("there is nothing to see in fewer than 2 points or 5 sweeps")
    directory = options.directory.resolve()
    console = Console(soft_wrap=True)
    shape = {} if options.htex else {"threads_per_rank": CORES, "tags": {"lattice": "large"}}
    plan = Plan(directory, options.points, options.sweeps, shape)
    with ExitStack() as stack:
        service = None
        if not options.htex:
            deployment = stack.enter_context(Deployment.start(directory / "balsam", temporary=True))
            service = deployment.service()
        outcome = campaign("First run", plan, service, console)
        campaign("The same again", plan, service, console)
    console.print(magnetizations(outcome.rows))
    for words in outcome.refused.values():
        console.print(f"Left out: {words}.", highlight=False)
    console.print(
        f"The susceptibility of {LARGE} x {LARGE} spins peaks at T = {peak(outcome.larger):.2f}; "
        f"an infinite lattice has its transition at {CRITICAL:.3f}.",
        highlight=False,
    )
    console.print("Written:", ", ".join(os.path.relpath(file) for file in outcome.files), highlight=False)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nInterrupted; everything has been shut down.", file=sys.stderr)
        sys.exit(130)
