"""`BalsamExecutor`: libEnsemble's workers submit jobs of Balsam (seed 003)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from libensemble.executors.executor import ExecutorException, jassert
from libensemble.message_numbers import (
    MAN_KILL_SIGNALS,
    TASK_FAILED,
    TASK_FAILED_TO_START,
    UNSET_TAG,
    WORKER_DONE,
    WORKER_KILL,
    WORKER_KILL_ON_TIMEOUT,
)

from balsam_exec.api.batch_jobs import BatchJob
from balsam_exec.client.config import load_service
from balsam_exec.client.service import Service
from balsam_exec.executors.libensemble.allocations import revoke, submit_allocation
from balsam_exec.executors.libensemble.apps import RegisteredApp, of_definition, of_executable
from balsam_exec.executors.libensemble.draft import (
    changed_environment,
    for_definition,
    for_executable,
    job_spec,
)
from balsam_exec.executors.libensemble.reattach import reattach
from balsam_exec.executors.libensemble.request import (
    Shape,
    launcher_options,
    mpi_prefix,
    shape,
    transfers_of,
)
from balsam_exec.executors.libensemble.session import Session, session_of
from balsam_exec.executors.libensemble.story import TaskFuture
from balsam_exec.executors.libensemble.task import BalsamTask, log
from balsam_exec.executors.libensemble.worker import OfWorkers
from balsam_exec.model.batch_jobs import JobMode
from balsam_exec.model.jobs import JobSpec

#: How many tasks of an executable share a node unless `max_tasks_per_node` says otherwise: libEnsemble's workers decide
#: how many there are.
UNLIMITED = 1_000_000


class BalsamExecutor(OfWorkers):
    """Runs libEnsemble's tasks as jobs of Balsam, at any site of the service (seed 003).

    It is used as libEnsemble's other executors, from sim and gen functions, under comms local, threads, tcp and mpi.
    Tasks run in allocations: those of `submit_allocation`, or any other of the site. They outlive libEnsemble: see
    `reattach`.

    Args:
        workflow_name: the tag "libe" of its jobs, and the directory of their workdirs; `reattach` finds them by it.
        service: the service to use; by default the configured one (see `balsam up`, `balsam login`).
        site: the site for allocations and executables where none is named: a name, id or Site; by default the
            configured one, or the only one there is.

    Raises:
        ConfigurationError: no service is given and none is configured.
    """

    def __init__(
        self, workflow_name: str = "libe_workflow", *, service: Service | None = None, site: Any = None
    ) -> None:
        if not re.fullmatch(r"[\w.@+=-][\w.@+=/ -]{0,99}", workflow_name) or ".." in workflow_name.split("/"):
            raise ExecutorException(f"{workflow_name!r} cannot be the name of a workflow: it names a directory, too")
        self._service = service or load_service()
        self._site = getattr(site, "id", site)
        self._session: Session | None = None
        self._ignored: set[str] = set()
        self._environment = dict(os.environ)
        self.workflow_name = workflow_name
        self.allocations: list[BatchJob] = []
        super().__init__()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_session": None, "allocations": []}

    def __repr__(self) -> str:
        return f"<BalsamExecutor {self.workflow_name!r} at {self._service.url}>"

    # --- apps and allocations

    def register_app(
        self,
        BalsamApp: Any = None,
        app_name: str | None = None,
        calc_type: str | None = None,
        desc: str | None = None,
        precedent: str | None = None,
        *,
        full_path: str | os.PathLike[str] | None = None,
    ) -> None:
        """Register an ApplicationDefinition, at its site; or an executable of this machine, given by its path.

        An executable runs as with libEnsemble's MPIExecutor: in the working directory of whoever submits it, with
        the environment variables that were set there since the executor was made (they are part of the job), its
        stdout and stderr in files. Its site is the executor's, and has to be on this machine.

        Args:
            BalsamApp: the class, or a path.
            app_name: to submit it by; by default the first word of the command template, or the name of the executable.
            calc_type: "sim" or "gen": what is submitted where only this is named.
            desc: a description.
            precedent: what stands before the path of an executable on its command line.
        """
        what = BalsamApp if full_path is None else full_path
        if isinstance(what, type):
            if precedent:
                log.warning("precedent is ignored: the command template of %s says all", what.__name__)
            app = of_definition(self._here.client, what, app_name, calc_type, desc)
        elif isinstance(what, (str, os.PathLike)):
            path = os.fspath(what)
            app = of_executable(self._here.client, self._site, path, app_name, calc_type, desc, precedent or "")
        else:
            raise ExecutorException(f"register_app takes an ApplicationDefinition or a path, not {what!r}")
        self.apps[app.name] = app
        if calc_type is not None:
            jassert(calc_type in self.default_apps, "Unrecognized calculation type", calc_type)
            self.default_apps[calc_type] = app

    def submit_allocation(
        self,
        site_id: Any = None,
        num_nodes: int = 1,
        wall_time_min: int = 60,
        job_mode: JobMode = "mpi",
        queue: str = "local",
        project: str = "local",
        optional_params: Mapping[str, str] = {},
        filter_tags: Mapping[str, str] = {},
        partitions: Sequence[Any] = [],
    ) -> BatchJob:
        """Ask a site for an allocation, in which its jobs run: a `BatchJob`, also in `allocations`.

        Args:
            site_id: the site's id, name or Site; None: the executor's.
            num_nodes, wall_time_min, queue, project, optional_params: what to ask the site's batch scheduler for.
            job_mode: "mpi", or "serial" for jobs of one rank alone.
            filter_tags: it runs only jobs that carry all of these.
            partitions: several launchers in the allocation, each with its job_mode, num_nodes and filter_tags.
        """
        allocation = submit_allocation(
            self._here.client,
            self._site if site_id is None else site_id,
            num_nodes=num_nodes,
            wall_time_min=wall_time_min,
            job_mode=job_mode,
            queue=queue,
            project=project,
            optional_params=dict(optional_params),
            filter_tags=dict(filter_tags),
            partitions=list(partitions),
        )
        self.allocations.append(allocation)
        return allocation

    def revoke_allocation(self, allocation: BatchJob, timeout: float = 60) -> bool:
        """Give an allocation back; tasks that run in it may restart in another.

        Waits until the scheduler knows of it, or it has ended. When that takes longer than `timeout` seconds, returns
        False with a warning; then it is revoked as soon as its site hears of it.
        """
        return revoke(self._here.client, allocation, timeout)

    # --- tasks

    def submit(
        self,
        calc_type: str | None = None,
        app_name: str | None = None,
        app_args: Any = None,
        num_procs: int | None = None,
        num_nodes: int | None = None,
        procs_per_node: int | None = None,
        max_tasks_per_node: int | None = None,
        machinefile: str | None = None,
        gpus_per_rank: float = 0,
        transfers: Mapping[str, Any] = {},
        workdir: str = "",
        dry_run: bool | None = False,
        wait_on_start: bool | float | None = False,
        extra_args: Mapping[str, Any] | str | None = {},
        tags: Mapping[str, str] = {},
        *,
        num_gpus: int | None = None,
        stdout: str | None = None,
        stderr: str | None = None,
        hyperthreads: bool | None = False,
        env_script: str | None = None,
        auto_assign_gpus: bool | None = False,
        match_procs_to_gpus: bool | None = False,
        mpi_runner_type: Any = None,
        stage_inout: str | None = None,
        threads_per_rank: int = 1,
        wall_time_min: int = 0,
    ) -> BalsamTask:
        """Submit a task: a job, which runs when there is an allocation with room for it.

        Returns at once. Only mistakes of the caller raise; a service that is away is waited for in the background, and
        what it refuses is a task that FAILED_TO_START, its `error` the reason.

        Args:
            calc_type: "sim" or "gen", for the app registered as such, where there is no `app_name`.
            app_name: the app to run.
            app_args: the parameters of an ApplicationDefinition, as a dictionary; the arguments of an executable, as a
                line or a list of words.
            num_procs, num_nodes, procs_per_node: MPI ranks in all, nodes, ranks on each; what is not given follows
                from the others, or is 1.
            max_tasks_per_node: how many such tasks may share a node; by default a task of an ApplicationDefinition has
                its nodes for itself, and the number of executables is not limited.
            gpus_per_rank: GPUs of each rank; `num_gpus`: of all together.
            transfers: slot -> "location:path" for the files to stage in and out.
            workdir: the task's directory, below that of the workflow in the site's data directory; by default one of
                its own. Not for executables, which run in the present directory.
            dry_run: only log the command line (at INFO).
            wait_on_start: wait until it runs, or has ended; a number: so many seconds at most.
            extra_args: options for the MPI launcher, as a dictionary or a line.
            tags: further tags of the job, for example for `filter_tags` of allocations.
            stdout, stderr: files of the task's directory; by default job.out for both, for executables one each.
            hyperthreads: ranks may share a core with others, two on each.
            env_script: a shell script to run an executable in the environment of.
            auto_assign_gpus: as many GPUs as this worker has by libEnsemble's resources, where there are such.
            match_procs_to_gpus: as many ranks as GPUs.
            threads_per_rank, wall_time_min: of the job.
            machinefile, mpi_runner_type, stage_inout: ignored, with a warning; the site decides.

        Raises:
            ExecutorException: no such app; arguments that it does not take, or that contradict each other.
        """
        app = self._app(app_name, calc_type)
        self._ignore(machinefile=machinefile, mpi_runner_type=mpi_runner_type, stage_inout=stage_inout)
        options, counts = launcher_options(extra_args)
        size = self._shape(
            num_procs or counts.get("num_procs"),
            num_nodes,
            procs_per_node or counts.get("procs_per_node"),
            num_gpus,
            gpus_per_rank,
            auto_assign_gpus,
            match_procs_to_gpus,
        )
        fields: dict[str, Any] = {
            "num_nodes": size.num_nodes,
            "ranks_per_node": size.ranks_per_node,
            "gpus_per_rank": size.gpus_per_rank,
            "threads_per_rank": threads_per_rank,
            "threads_per_core": 2 if hyperthreads else 1,
            "node_packing_count": max_tasks_per_node or (UNLIMITED if app.executable else 1),
            "wall_time_min": wall_time_min,
            "launch_params": options,
            "transfers": transfers_of(app.record, transfers),
            "tags": {**tags, **self._here.tags},
        }
        dry_run = bool(dry_run)
        if app.executable:
            self._ignore(workdir=workdir)
            environment = changed_environment(self._environment)
            task, own = for_executable(
                self, self.workflow_name, app, app_args, stdout, stderr, env_script, environment, dry_run
            )
        else:
            self._ignore(env_script=env_script)
            task, own = for_definition(self, self.workflow_name, app, app_args, stdout, stderr, workdir, dry_run)
        spec = job_spec(task, {**fields, **own})
        task.tags, task.ngpus_req = spec.tags, int(spec.gpus_per_node)
        task.runline = " ".join([*mpi_prefix(size, options), task.runline])
        if dry_run:
            log.info("Test (No submit) Runline: %s", task.runline)
            task.poll()
        else:
            self._launch(task, spec, wait_on_start)
        self._note(task)
        return task

    def reattach(
        self,
        *,
        app_name: str | None = None,
        workdir: str | None = None,
        tags: Mapping[str, str] = {},
        finished: bool = True,
    ) -> list[BalsamTask]:
        """The tasks of this workflow that the service knows, in the order of their submission: also those of former
        runs of libEnsemble, whose jobs went on when it ended.

        They can be polled, waited for, killed and read as before; this process submits none of them again. Their apps
        have to be registered here.

        Args:
            app_name: only tasks of this app.
            workdir: only tasks whose workdir below the workflow's directory begins with this.
            tags: only tasks that carry all of these.
            finished: False leaves out those that have ended.
        """
        return reattach(self, app_name, workdir, dict(tags), finished)

    def polling_loop(
        self, task: Any, timeout: float | None = None, delay: float = 0.1, poll_manager: bool = False
    ) -> int:
        """Wait for the task's end and return a calc_status of libEnsemble.

        It is killed once it has run for `timeout` seconds (what it waits for an allocation does not count), and with
        `poll_manager` when the manager says so, asked every `delay` seconds.
        """
        if not isinstance(task, BalsamTask):
            return int(super().polling_loop(task, timeout, delay, poll_manager))
        task.poll()
        while not task.finished:
            if poll_manager and self.manager_poll() in MAN_KILL_SIGNALS:
                self.kill(task)
                if task.state != "FINISHED":
                    return int(self.manager_signal)
            elif timeout is not None and task.runtime > timeout:
                self.kill(task)
                if task.state != "FINISHED":
                    return int(WORKER_KILL_ON_TIMEOUT)
            else:
                task.linger(delay)
            task.poll()
        return int(_STATUS.get(task.state, UNSET_TAG))

    # --- insides

    @property
    def _here(self) -> Session:
        """What this process has."""
        self._session = session_of(self._service, self.workflow_name, self._session)
        return self._session

    def _leave(self) -> None:
        if self._session is not None:
            self._session.flush()

    def _app(self, app_name: str | None, calc_type: str | None) -> RegisteredApp:
        if app_name is None and calc_type is None:
            raise ExecutorException("Either app_name or calc_type must be set")
        found: RegisteredApp = self.get_app(app_name) if app_name is not None else self.default_app(calc_type)
        return found

    def _ignore(self, **arguments: Any) -> None:
        """Warn, once for each, of arguments that are given and mean nothing here."""
        for name, value in arguments.items():
            if value and name not in self._ignored:
                self._ignored.add(name)
                log.warning("submit ignores %s=%r: it does not apply to jobs of Balsam of this kind", name, value)

    def _shape(
        self,
        num_procs: int | None,
        num_nodes: int | None,
        procs_per_node: int | None,
        num_gpus: int | None,
        gpus_per_rank: float,
        auto_assign_gpus: bool | None,
        match_procs_to_gpus: bool | None,
    ) -> Shape:
        """What the caller wants; what he leaves open, the generator and libEnsemble's resources may say."""
        bare = not (num_procs or num_nodes or procs_per_node)
        if num_gpus is None and not gpus_per_rank:
            num_gpus = self.gen_ngpus
            if num_gpus is None and auto_assign_gpus:
                num_gpus = self._worker_gpus()
        match = bool(match_procs_to_gpus) or bool(auto_assign_gpus and bare and self.gen_nprocs is None)
        if not num_procs and not match and not (num_nodes and procs_per_node):
            num_procs = self.gen_nprocs
        return shape(num_procs, num_nodes, procs_per_node, num_gpus, gpus_per_rank, match_procs_to_gpus=match)

    def _launch(self, task: BalsamTask, spec: JobSpec, wait_on_start: bool | float | None) -> None:
        session = self._here
        future = cast(TaskFuture, session.engine.submit(spec))
        log.info("Submitting task %s: %s", task.name, task.runline)
        task.follow(future, session.engine, session)
        if wait_on_start:
            task.wait_started(None if wait_on_start is True else float(wait_on_start))


_STATUS = {
    "FINISHED": WORKER_DONE,
    "FAILED": TASK_FAILED,
    "FAILED_TO_START": TASK_FAILED_TO_START,
    "USER_KILLED": WORKER_KILL,
}
