"""Where a program runs: inside of a job, its own job; at a site, that site's client."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from balsam_exec.api.binding import default_client
from balsam_exec.model.errors import ConfigurationError

if TYPE_CHECKING:
    from balsam_exec.api.jobs import Job

#: The variable that names the job to every process of it, and to its hooks.
VARIABLE = "BALSAM_JOB_ID"


def current_job() -> Job:
    """The job that this process belongs to, as the service knows it now (seed 000 `current_job`).

    For the code of a running app, for every program that its command starts, on any node, and for hooks. Each call
    asks anew. From there jobs can be added, changed and killed as from anywhere else:

        job = current_job()
        children = [Refine.submit(f"{job.workdir}/{i}", level=i, parent_ids=[job]) for i in range(4)]
        job.child_query().filter(tags={"branch": "b"}).kill()

    Raises ConfigurationError outside of a job, DoesNotExist when the job was deleted meanwhile.
    """
    given = os.environ.get(VARIABLE)
    if not given:
        raise ConfigurationError(f"no job runs here ({VARIABLE} is not set): use it in an app's run, command or hook")
    if not given.isdecimal():
        raise ConfigurationError(f"{VARIABLE} is {given!r}, which is no id of a job")
    return default_client().Job.objects.get(id=int(given))
