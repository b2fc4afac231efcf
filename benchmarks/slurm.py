"""A real Slurm of four nodes on this machine, and a site on it: common to the benchmarks of allocations."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from balsam_exec.embedded import Deployment
from balsam_exec.embedded.layout import SITE_NAME, Layout
from balsam_exec.platform.settings import SiteDirectory, SiteSettings
from balsam_exec.platform.settings.text import settings_text
from tests.support.slurm import SlurmCluster, missing

NODES, CORES = 4, 8


@contextmanager
def own_slurm() -> Iterator[SlurmCluster]:
    """A Slurm that is this machine's for this process and all that it starts."""
    if reason := missing():
        raise SystemExit(f"this needs Slurm, and there is {reason}")
    before = dict(os.environ)
    with SlurmCluster(NODES, CORES) as cluster:
        os.environ.update(cluster.environment)
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or every launcher compiles what it imports
        try:
            yield cluster
        finally:
            os.environ.clear()
            os.environ.update(before)


@contextmanager
def deployment_on_slurm(**settings: Any) -> Iterator[Deployment]:
    """A temporary deployment whose site is on Slurm, with these settings."""
    with tempfile.TemporaryDirectory(prefix="balsam-") as home:
        site = site_of(Path(home))
        site.path.mkdir(parents=True)
        told = SiteSettings.model_validate(
            {"name": SITE_NAME, "scheduler": "slurm", "cores": CORES, "scheduler_poll_sec": 0.5, **settings}
        )
        site.settings_file.write_text(settings_text(told))
        with Deployment.start(Path(home), temporary=True) as deployment:
            yield deployment


def site_of(home: Path) -> SiteDirectory:
    """The directory of a deployment's site."""
    return SiteDirectory(Layout(home).site)
