"""`balsam job wait`: until jobs have ended, woken by the change feed."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from balsam_exec.cli.choice import Choice, records
from balsam_exec.cli.common import JsonOption, connect
from balsam_exec.model.states import JobState

if TYPE_CHECKING:
    from balsam_exec.client.service import Service
    from balsam_exec.model.jobs import JobRecord

# Exit codes; as of all commands 1 is any error too, and 2 a wrong usage.
ALL_FINISHED = 0  #: all jobs are JOB_FINISHED
SOME_FAILED = 1  #: some jobs are FAILED
SOME_KILLED = 3  #: no job is FAILED, but some are USER_KILLED
TIME_IS_UP = 124  #: `--timeout` was over before all had ended
INTERRUPTED = 130  #: Ctrl-C; the jobs go on

Ends = Counter[JobState]


def wait(
    chosen: Choice,
    timeout: Annotated[float | None, typer.Option(min=0, help="Wait for so many seconds at most.")] = None,
    json: JsonOption = False,
) -> None:
    """Wait until jobs have ended: those named, or all that the options choose now.

    The exit code is 0 when all are JOB_FINISHED, 1 when some are FAILED, 3 when none failed but some were killed, 124
    when the time is up, 130 after Ctrl-C. The jobs do not notice whether anybody waits.
    """
    from balsam_exec.cli.output import print_json

    service = connect()
    jobs = records(service, chosen)
    code = wait_for(service, jobs, timeout)
    if json:
        from balsam_exec.cli.choice import named

        print_json(named(service, [job.id for job in jobs]))
    raise typer.Exit(code)


def wait_for(service: Service, jobs: list[JobRecord], timeout: float | None = None) -> int:
    """Wait, showing on a terminal how it goes, and name those that ended badly. The exit code."""
    from balsam_exec.api.binding import Client

    client = Client(service)
    waiting = [client.Job.from_record(client, job) for job in jobs]
    ends: Ends = Counter()
    try:
        with _progress(len(jobs)) as show:
            for job in client.Job.objects.as_completed(waiting, timeout):
                ends[job.state] += 1
                if job.state is not JobState.JOB_FINISHED:
                    typer.echo(f"job {job.id} is {job.state}: balsam job explain {job.id}", err=True)
                show(ends)
    except TimeoutError:
        typer.echo(f"{len(jobs) - ends.total()} of {len(jobs)} jobs have not ended after {timeout:g} s", err=True)
        return TIME_IS_UP
    except KeyboardInterrupt:
        left = len(jobs) - ends.total()
        typer.echo(f"{left} of {len(jobs)} jobs have not ended; they go on, and the same command waits again", err=True)
        return INTERRUPTED
    return exit_code(ends)


def exit_code(ends: Ends) -> int:
    if ends[JobState.FAILED]:
        return SOME_FAILED
    return SOME_KILLED if ends[JobState.USER_KILLED] else ALL_FINISHED


@contextmanager
def _progress(total: int) -> Iterator[Callable[[Ends], None]]:
    """A bar on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("waiting", total=total)

        def show(ends: Ends) -> None:
            told = ", ".join(f"{count} {state}" for state, count in ends.items())
            progress.update(task, completed=ends.total(), description=told)

        yield show
