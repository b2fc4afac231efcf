"""From a site's directory and a batch job to running launchers."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from balsam_exec.client.config import Credentials, load_credentials
from balsam_exec.client.pages import every
from balsam_exec.client.service import Service
from balsam_exec.launcher.crews import Crew, crew_of, crews_of
from balsam_exec.launcher.launcher import Launcher, Mission, obey_guardian, obey_orders
from balsam_exec.launcher.leader import CrewStart, Leader
from balsam_exec.launcher.pilot import Terms
from balsam_exec.launcher.ranks import sweep
from balsam_exec.launcher.wall_time import end_of_allocation
from balsam_exec.model.errors import BalsamError
from balsam_exec.model.sessions import SessionSpec
from balsam_exec.platform.allocation import find_allocation, part_of_allocation
from balsam_exec.platform.mpi import node_launcher
from balsam_exec.platform.nodes import local_node
from balsam_exec.platform.settings import SiteDirectory

log = logging.getLogger(__name__)

#: Seconds after which a launcher that is not heard of has its jobs taken away.
TTL = 60.0
#: Variables by which an MPI launcher tells a process that it is a rank. A launcher may be one; its jobs are not.
_OF_RANKS = ("PMI_", "PMIX_", "OMPI_", "PRTE_", "PALS_", "MPI_LOCAL", "HYDI_")
#: Part of the names of those among them by which people configure MPI.
_SETTING = "_MCA_"


@dataclass(frozen=True, slots=True)
class Orders:
    """What a launcher process is told when it starts."""

    site: Path
    batch_job_id: int
    crew: int | None = None  #: work as this crew; None: lead the whole allocation
    hosts: tuple[str, ...] = ()  #: of the crew; none: this one
    ends_at: float | None = None  #: when the allocation is taken away, in Unix time; None: to be found out
    until_eof: bool = False  #: end with the standard input


class Start:
    """All that has to be known before anything runs, and what runs then. Raises BalsamError."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._site = SiteDirectory(orders.site)
        self._settings = self._site.settings()
        self._credentials = load_credentials()
        self.service = Service(self._credentials.url, self._credentials.token.get_secret_value())
        self._batch_job = self.service.batch_job(orders.batch_job_id)
        leads = orders.crew is None
        self._allocation = find_allocation() if leads else part_of_allocation(orders.hosts)
        self._ends_at = orders.ends_at or end_of_allocation(
            self._batch_job, self._site, self._settings, self._allocation.scheduler_id
        )

    def runner(self) -> Launcher | Leader:
        """What runs the crews that this process answers for."""
        crews = self._crews()
        if len(crews) == 1 and crews[0].fits_one_launcher(self._allocation.here):
            return self._launcher(crews[0])
        return Leader([self._start_of(crew) for crew in crews])

    def _crews(self) -> list[Crew]:
        hosts, here = self._allocation.hosts, self._allocation.here
        if self._orders.crew is not None:
            return [crew_of(self._batch_job, self._orders.crew, hosts)]
        if self._settings.scheduler == "local":  # it gives this machine, whatever allocation that is a part of
            hosts = tuple(sorted(hosts, key=lambda host: host != here)[: self._batch_job.num_nodes])
        crews = crews_of(self._batch_job, hosts)
        for index in range(len(crews), len(self._batch_job.partitions)):
            log.warning("partition %d has no nodes: the allocation has %d in all", index, len(hosts))
        return crews

    def _start_of(self, crew: Crew) -> CrewStart:
        words = [sys.executable, "-P", "-m", "balsam_exec.launcher", "--site", str(self._site.path)]
        orders = {"--batch-job": self._batch_job.id, "--crew": crew.index, "--ends-at": round(self._ends_at)}
        words += [str(word) for order in orders.items() for word in order]
        if crew.fits_one_launcher(self._allocation.here):
            return CrewStart(crew, [*words, "--hosts", ",".join(crew.hosts)])
        starter = node_launcher(crew.hosts, os.environ, self._settings.mpi_launcher, self._settings.node_launcher)
        until_eof = ["--until-eof"] if starter.hands_on_stdin else []
        return CrewStart(crew, [*starter.words, *words, *until_eof], starter.hands_on_stdin)

    def _launcher(self, crew: Crew) -> Launcher:
        mission = self._mission(crew)
        batch_job = self._batch_job
        spec = SessionSpec(site_id=batch_job.site_id, batch_job_id=batch_job.id, ttl_sec=TTL, room=mission.room)
        session = self.service.open_session(spec)
        sweep(self._site.exchange, self._sessions)
        log.info("launcher of batch job %d, session %d, on %s", batch_job.id, session.id, ", ".join(crew.hosts))
        environ = without_rank(os.environ) if self._orders.crew is not None else os.environ
        environment = job_environment(environ, self._credentials, batch_job.site_id)
        return Launcher(self.service, session, mission, environment)

    def _sessions(self) -> set[int]:
        return {session.id for session in every(self.service.sessions, site_id=[self._batch_job.site_id])}

    def _mission(self, crew: Crew) -> Mission:
        settings, idle = self._settings, self._batch_job.idle_ttl_sec
        idle = settings.idle_ttl_sec if idle is None else idle
        node = local_node(settings.cores, settings.gpus)
        return Mission(
            data=self._site.data,
            exchange=self._site.exchange,
            nodes=tuple(replace(node, name=host) for host in crew.hosts),
            here=crew.hosts.index(here) if (here := self._allocation.here) in crew.hosts else None,
            is_scheduled=self._allocation.scheduler_id is not None,
            terms=Terms(ttl=TTL, wall_time=self._ends_at - time.time(), idle=float(idle)),
            batch_job_id=self._batch_job.id,
            serial_only=crew.job_mode == "serial",
            filter_tags=crew.filter_tags,
            max_entity=self.service.max_entity,
            affinity=settings.cpu_affinity,
            sort_by=settings.sort_by,
            mpi_launcher=settings.mpi_launcher,
            hook_timeout=settings.processing.hook_timeout_sec,
        )


def launch(orders: Orders, guardians: Iterable[int] = ()) -> int:
    """Run the site's jobs until the end of the allocation, or of the work. Returns the exit code of the process."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        start = Start(orders)
        runner = start.runner()
    except BalsamError as error:
        log.error("the launcher cannot start: %s", error)
        return 1
    obey_orders(runner, orders.until_eof)
    for guardian in guardians:
        obey_guardian(runner, guardian)
    return 0 if run_to_the_end(runner, start.service) else 1


def job_environment(environ: Mapping[str, str], credentials: Credentials, site_id: int) -> dict[str, str]:
    """What jobs inherit: our environment, the service that we use, by default the site that they run at, and a PATH on
    which the balsam command is found, after everything else."""
    path = environ.get("PATH", os.defpath)
    if shutil.which("balsam", path=path) is None:
        path += os.pathsep + os.path.dirname(sys.executable)
    handed_on = credentials.model_copy(update={"site": str(site_id)}).variables()
    return {**environ, **handed_on, "PATH": path}


def without_rank(environ: Mapping[str, str]) -> dict[str, str]:
    """This environment of a process that an MPI launcher may have started, for processes that it has not."""
    return {k: v for k, v in environ.items() if not k.startswith(_OF_RANKS) or _SETTING in k}


def run_to_the_end(runner: Launcher | Leader, service: Service) -> bool:
    try:
        return runner.run()
    except BalsamError as error:  # the session could not be closed; it expires by itself
        log.warning("%s", error)
        return True
    finally:
        service.close()  # wakes the threads that wait for an answer
