"""A small campaign that uses the three ways to work: `make demo` runs it.

1. A parameter sweep through concurrent.futures: Lennard-Jones clusters relaxed from random starts, in numpy.
2. An ensemble of a shell command: the logistic map at several growth rates, in awk.
3. A dependency of two levels: one job makes samples, three integrate them, one combines the three.

Everything runs on this machine, on a service and a site that are started for it and taken down at the end.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import as_completed
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from balsam_exec import ApplicationDefinition, BalsamPoolExecutor, BatchJob, Job
from balsam_exec.embedded import Deployment

#: Energies of the best known clusters of so many atoms (J. Phys. Chem. A 101, 5111), in units of epsilon.
BEST_KNOWN = {4: -6.000, 5: -9.104, 6: -12.712, 7: -16.505, 8: -19.822}


def relax(atoms: int, seed: int) -> float:
    """The energy of a Lennard-Jones cluster relaxed by gradient descent with momentum from a random start."""
    random = np.random.default_rng(seed)
    x = random.uniform(-1.2, 1.2, (atoms, 3))
    velocity, energy = np.zeros_like(x), 0.0
    others = ~np.eye(atoms, dtype=bool)
    for _ in range(4000):
        apart = x[:, None] - x[None, :]
        r2 = np.maximum((apart**2).sum(-1), 0.4)[..., None]
        inverse6 = np.where(others[..., None], r2**-3, 0.0)
        energy = float(2.0 * (inverse6**2 - inverse6).sum())
        force = (24.0 * (2.0 * inverse6**2 - inverse6) / r2 * apart).sum(1)
        velocity = 0.9 * velocity + np.clip(force, -50.0, 50.0) * 1e-3
        x = x + velocity
    return energy


class Logistic(ApplicationDefinition):
    """Where the logistic map comes to rest after many generations."""

    site = "local"
    command_template = (
        "awk -v r={{ rate }} -v n={{ generations }} -v name={{ label }} "
        "'BEGIN { x = 0.5; for (i = 0; i < n; i++) x = r * x * (1 - x); print name, x }'"
    )
    parameters = {"generations": {"required": False, "default": "20000", "help": "generations to iterate"}}


class Samples(ApplicationDefinition):
    """Random points for the integration, in a file."""

    site = "local"

    def run(self, count: int, seed: int) -> str:
        import numpy

        numpy.save("points.npy", numpy.random.default_rng(seed).uniform(-1, 1, (count, 3)))
        return "points.npy"


class Share(ApplicationDefinition):
    """The share of the points of one axis order that lie in the unit ball."""

    site = "local"

    def run(self, part: int, parts: int) -> float:
        import numpy

        points = numpy.load("../samples/points.npy")[part::parts]
        inside = float(((points**2).sum(1) <= 1.0).mean())
        with open("share.txt", "w") as file:
            file.write(f"{inside}\n")
        return inside


class Volume(ApplicationDefinition):
    """The volume of the unit ball, from all shares."""

    site = "local"

    def run(self, parts: int) -> float:
        from pathlib import Path

        shares = [float(Path(f"../share{i}/share.txt").read_text()) for i in range(parts)]
        return 8.0 * sum(shares) / len(shares)


def sweep(sizes: list[int], starts: int, progress: Progress) -> Table:
    """The best energy of each size over so many starts."""
    bar = progress.add_task("concurrent.futures: clusters relaxed", total=len(sizes) * starts)
    best: dict[int, float] = {}
    with BalsamPoolExecutor(name=f"clusters-{int(time.time())}") as pool:
        futures = {pool.submit(relax, atoms, seed): atoms for atoms in sizes for seed in range(starts)}
        for future in as_completed(futures):
            atoms = futures[future]
            best[atoms] = min(best.get(atoms, 0.0), future.result())
            progress.advance(bar)
    table = Table(title="Lennard-Jones clusters: energies", title_justify="left")
    for heading in ("atoms", "energy", "best known"):
        table.add_column(heading, justify="right")
    for atoms in sizes:
        table.add_row(str(atoms), f"{best[atoms]:.3f}", f"{BEST_KNOWN[atoms]:.3f}")
    return table


def ensemble(rates: list[float], data: Path, progress: Progress) -> Table:
    """Where the map comes to rest for each rate, read from the jobs' output."""
    bar = progress.add_task("command app: growth rates", total=len(rates))
    jobs = Job.objects.bulk_create(
        Logistic.submit(
            f"logistic/r{rate:.2f}", rate=rate, label=f"r={rate:.2f}", save=False, tags={"demo": "logistic"}
        )
        for rate in rates
    )
    for job in Job.objects.as_completed(jobs):
        job.result()
        progress.advance(bar)
    table = Table(title="Logistic map", title_justify="left")
    table.add_column("rate")
    table.add_column("population", justify="right")
    for job in jobs[::4]:
        label, value = (data / job.workdir / "job.out").read_text().split()
        table.add_row(label, value)
    return table


def dependency(parts: int, progress: Progress) -> Table:
    """Samples -> Share, several at once -> Volume."""
    bar = progress.add_task("dependencies: integration", total=parts + 2)
    count = 300_000
    samples = Samples.submit("ball/samples", count=count, seed=1)
    shares = Job.objects.bulk_create(
        Share.submit(f"ball/share{i}", part=i, parts=parts, parent_ids=[samples], save=False) for i in range(parts)
    )
    volume = Volume.submit("ball/volume", parts=parts, parent_ids=shares)
    for _ in Job.objects.as_completed([samples, *shares, volume]):
        progress.advance(bar)
    table = Table(title="Volume of the unit ball", title_justify="left")
    table.add_column("samples", justify="right")
    table.add_column("volume", justify="right")
    table.add_column("4/3 pi", justify="right")
    table.add_row(f"{count:,}", f"{volume.result():.3f}", f"{4 / 3 * np.pi:.3f}")
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path("demo-run"), help="where everything is kept")
    parser.add_argument("--small", action="store_true", help="a few seconds' worth of work")
    options = parser.parse_args()
    console = Console()
    started = time.monotonic()
    with Deployment.start(options.directory, temporary=True) as deployment:
        os.environ["BALSAM_HOME"] = str(deployment.home)
        up = time.monotonic() - started
        console.print(f"Service {deployment.url} and site {deployment.site!r} are up after {up:.1f} s.")
        tables = run(deployment, small=options.small, console=console)
        states = {count.state: count.count for count in deployment.service().job_states()}
    for table in tables:
        console.print(table)
    console.print(f"{sum(states.values())} jobs: " + ", ".join(f"{n} {state}" for state, n in states.items()))
    console.print(f"Their outputs lie in {deployment.home / 'site' / 'data'}. Everything has been shut down.")
    return 0 if set(states) == {"JOB_FINISHED"} else 1


def run(deployment: Deployment, *, small: bool, console: Console) -> list[Table]:
    BatchJob.objects.create(
        site_id=deployment.site_id, num_nodes=1, wall_time_min=10, job_mode="serial", queue="local", project="local"
    )
    data = deployment.home / "site" / "data"
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        return [
            sweep([4, 5, 6] if small else list(BEST_KNOWN), 3 if small else 24, progress),
            ensemble([2.8, 3.2] if small else [2.0 + 0.05 * i for i in range(40)], data, progress),
            dependency(2 if small else 3, progress),
        ]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nInterrupted; everything has been shut down.", file=sys.stderr)
        sys.exit(130)
