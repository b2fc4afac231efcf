"""What a campaign shows: a bar while it runs, a table and two plots at its end."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import plate
from libensemble.message_numbers import MAN_KILL_SIGNALS, WORKER_DONE, WORKER_KILL_ON_ERR
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table


class Bar:
    """How far the ensemble is; as `live_data`, it is told by libEnsemble's manager of every run that comes back."""

    def __init__(self, total: int, console: Console) -> None:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        self._progress = Progress(*columns, console=console)
        self._task = self._progress.add_task("runs", total=total)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._progress.stop()

    def live_update(self, hist: Any) -> None:
        ended = hist.H[hist.H["sim_ended"]]
        found = ended["f"][np.isfinite(ended["f"])]
        text = f"runs, best misfit {found.min():.2%}" if len(found) else "runs"
        self._progress.update(self._task, completed=len(ended), description=text)

    def finalize(self, hist: Any) -> None:
        self.live_update(hist)


class Outcomes:
    """The runs of a history, by how they ended."""

    def __init__(self, H: Any) -> None:
        ended = H[H["sim_ended"]]
        self.completed = np.sort(ended[ended["status"] == WORKER_DONE], order="f")
        self.diverged = ended[ended["status"] == WORKER_KILL_ON_ERR]
        self.cancelled = ended[np.isin(ended["status"], MAN_KILL_SIGNALS)]
        self.failed = len(ended) - len(self.completed) - len(self.diverged) - len(self.cancelled)

    def __str__(self) -> str:
        return (
            f"{len(self.completed)} runs completed; killed: {len(self.diverged)} that diverged, "
            f"{len(self.cancelled)} that took too long; {self.failed} failed."
        )


def table(outcomes: Outcomes, rows: int = 5) -> Table:
    """The best runs, above the plate's own diffusivities."""
    found = Table(title="Diffusivities", title_justify="left", show_footer=True)
    for heading, footer in (("run", "plate"), ("along x", f"{plate.TRUE[0]:.4f}"), ("along y", f"{plate.TRUE[1]:.4f}")):
        found.add_column(heading, footer, justify="right")
    found.add_column("misfit", justify="right")
    for run in outcomes.completed[:rows]:
        found.add_row(str(run["sim_id"]), f"{run['k'][0]:.4f}", f"{run['k'][1]:.4f}", f"{run['f']:.3%}")
    return found


def plot(H: Any, outcomes: Outcomes, directory: Path) -> list[Path]:
    """misfit.png: where the runs were and how the misfit fell; residuals.png: how well the best one fits."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    files = []
    for name, draw in (("misfit", _draw_misfit), ("residuals", _draw_residuals)):
        figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
        draw(figure, axes, H, outcomes)
        files.append(directory / f"{name}.png")
        figure.savefig(files[-1], dpi=120)
        pyplot.close(figure)
    return files


def _draw_misfit(figure: Any, axes: Any, H: Any, outcomes: Outcomes) -> None:
    where, fall = axes
    completed = outcomes.completed
    shown = where.scatter(*completed["k"].T, c=np.log10(completed["f"]), cmap="viridis_r", zorder=2)
    figure.colorbar(shown, label="log10 of the misfit")
    for runs, marker, label in ((outcomes.diverged, "x", "diverged"), (outcomes.cancelled, "v", "took too long")):
        where.scatter(*runs["k"].T, c="tab:red", marker=marker, label=f"killed: {label}")
    along = np.array([plate.STABLE_UP_TO - plate.UPPER[1], plate.UPPER[0]])
    where.plot(along, plate.STABLE_UP_TO - along, "--", c="tab:red", lw=1, label="stable below")
    where.scatter(*plate.TRUE, marker="*", s=150, fc="none", ec="k", zorder=3, label="the plate")
    where.set(xlabel="diffusivity along x", ylabel="diffusivity along y")
    where.legend(fontsize="small")

    finished = np.sort(completed, order="sim_ended_time")
    seconds = finished["sim_ended_time"] - H["sim_started_time"].min()
    fall.semilogy(seconds, finished["f"], ".", seconds, np.minimum.accumulate(finished["f"]), "-")
    fall.set(xlabel="seconds", ylabel="misfit of the runs, and the best so far")


def _draw_residuals(figure: Any, axes: Any, H: Any, outcomes: Outcomes) -> None:
    target = plate.measured()
    best, median = outcomes.completed[0], outcomes.completed[len(outcomes.completed) // 2]
    times, bars = axes
    for run, label in ((best, "best run"), (median, "median run")):
        times.loglog(target, run["times"], ".", label=f"{label} (misfit {run['f']:.2%})")
    times.loglog(np.sort(target), np.sort(target), "k-", lw=0.5)
    times.set(xlabel="cooling time of the plate", ylabel="cooling time in the run")
    times.legend()
    names = [f"{fraction:.0%} at {x:g}, {y:g}" for x, y in plate.PROBES for fraction in plate.FRACTIONS]
    bars.barh(names, 100 * plate.residuals(best["times"], target))
    bars.set(xlabel="residual of the best run, %", title="cooled down to")
