"""From a site's directory and a batch job to a running launcher."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from balsam_exec.client.config import Credentials, load_credentials
from balsam_exec.client.service import Service
from balsam_exec.launcher.launcher import Launcher, Mission, obey_guardian, obey_signals
from balsam_exec.launcher.pilot import Terms
from balsam_exec.model.batch_jobs import BatchJobRecord
from balsam_exec.model.errors import BalsamError
from balsam_exec.model.sessions import SessionSpec
from balsam_exec.platform.nodes import local_node
from balsam_exec.platform.settings import SiteDirectory, SiteSettings

log = logging.getLogger(__name__)

#: Seconds after which a launcher that is not heard of has its jobs taken away.
TTL = 60.0


def launch(site: Path, batch_job_id: int, guardians: Iterable[int] = ()) -> int:
    """Run the site's jobs until the end of the allocation, or of the work. Returns the exit code of the process."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        directory = SiteDirectory(site)
        settings = directory.settings()
        credentials = load_credentials()
        service = Service(credentials.url, credentials.token.get_secret_value())
        max_entity = service.max_entity
        batch_job = service.batch_job(batch_job_id)
        mission = replace(mission_of(directory, settings, batch_job, TTL), max_entity=max_entity)
        spec = SessionSpec(site_id=batch_job.site_id, batch_job_id=batch_job.id, ttl_sec=TTL, room=mission.room)
        session = service.open_session(spec)
    except BalsamError as error:
        log.error("the launcher cannot start: %s", error)
        return 1
    launcher = Launcher(service, session, mission, job_environment(os.environ, credentials, batch_job.site_id))
    obey_signals(launcher)
    for guardian in guardians:
        obey_guardian(launcher, guardian)
    log.info("launcher of batch job %d, session %d, on %s", batch_job.id, session.id, mission.nodes)
    return 0 if run_to_the_end(launcher, service) else 1


def job_environment(environ: Mapping[str, str], credentials: Credentials, site_id: int) -> dict[str, str]:
    """What jobs inherit: our environment, the service that we use, by default the site that they run at, and a PATH on
    which the balsam command is found, after everything else."""
    path = environ.get("PATH", os.defpath)
    if shutil.which("balsam", path=path) is None:
        path += os.pathsep + os.path.dirname(sys.executable)
    handed_on = credentials.model_copy(update={"site": str(site_id)}).variables()
    return {**environ, **handed_on, "PATH": path}


def run_to_the_end(launcher: Launcher, service: Service) -> bool:
    try:
        return launcher.run()
    except BalsamError as error:  # the session could not be closed; it expires by itself
        log.warning("%s", error)
        return True
    finally:
        service.close()  # wakes the threads that wait for an answer


def mission_of(directory: SiteDirectory, settings: SiteSettings, batch_job: BatchJobRecord, ttl: float) -> Mission:
    idle = settings.idle_ttl_sec if batch_job.idle_ttl_sec is None else batch_job.idle_ttl_sec
    return Mission(
        data=directory.data,
        exchange=directory.exchange,
        nodes=(local_node(settings.cores, settings.gpus),),
        terms=Terms(ttl=ttl, wall_time=time_left(batch_job, datetime.now(UTC)), idle=float(idle)),
        batch_job_id=batch_job.id,
        serial_only=batch_job.job_mode == "serial",
        filter_tags=batch_job.filter_tags,
        affinity=settings.cpu_affinity,
        mpi_launcher=settings.mpi_launcher,
        hook_timeout=settings.processing.hook_timeout_sec,
    )


def time_left(batch_job: BatchJobRecord, now: datetime) -> float:
    """Seconds until the allocation is taken away, as far as known."""
    wall_time = batch_job.wall_time_min * 60.0
    elapsed = (now - batch_job.start_time).total_seconds() if batch_job.start_time else 0.0
    return wall_time - max(0.0, elapsed)
