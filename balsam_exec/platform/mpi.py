"""How the ranks of a job are started. Here: mpiexec on one node."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping

from balsam_exec.model.errors import ConfigurationError
from balsam_exec.model.jobs import Resources


def launch_prefix(resources: Resources, environ: Mapping[str, str]) -> list[str]:
    """The words before a command that start it on all its ranks; none for a single rank.

    `launch_params` of the job go to the MPI launcher as they are, key then value. Raises ConfigurationError if there
    is no MPI launcher, neither on the PATH of `environ` nor beside this Python.
    """
    ranks = resources.ranks
    if ranks == 1:
        return []
    # Where MPI was installed with pip it is beside the interpreter, which need not be on the PATH.
    beside = os.path.dirname(sys.executable)
    mpiexec = shutil.which("mpiexec", path=environ.get("PATH")) or shutil.which("mpiexec", path=beside)
    if mpiexec is None:
        raise ConfigurationError(
            f"the job wants {ranks} ranks and there is no mpiexec on the PATH here: "
            "load an MPI module in job-template.sh, or pip install mpich"
        )
    extra = [word for pair in resources.launch_params.items() for word in pair if word]
    return [mpiexec, "-n", str(ranks), *extra]
