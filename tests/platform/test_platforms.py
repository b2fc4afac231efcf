"""The ready-made settings: each file by itself, and what a site begins with by it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from balsam_exec.model.base import now
from balsam_exec.model.batch_jobs import BatchJobRecord, BatchJobSpec
from balsam_exec.model.errors import InvalidRequest
from balsam_exec.model.jobs import Resources
from balsam_exec.model.states import BatchJobState
from balsam_exec.platform import mpi
from balsam_exec.platform.platforms import names, platform
from balsam_exec.platform.schedulers import SubmitSpec, make_scheduler
from balsam_exec.platform.settings import SiteDirectory, SiteSettings
from balsam_exec.site.allocations import render_script

KNOWN = {"local", "slurm", "pbs", "lsf", "flux", "polaris", "aurora", "perlmutter", "perlmutter-cpu", "frontier"}
#: What a line for each batch scheduler looks like.
DIRECTIVE = {
    "slurm": r"#SBATCH (--[a-z-]+(=\S+)?|-\w( \S+)?)",
    "pbs": r"#PBS -[lqA] \S+",
    "lsf": r"#BSUB -\w+( .+)?",
    "flux": r"#flux: -\S+",
}


def test_all_are_there() -> None:
    assert set(names()) == KNOWN
    with pytest.raises(InvalidRequest, match=r"no platform 'theta'; there are: .*polaris"):
        platform("theta")
    for path in ("../settings/site", "", "__init__"):
        with pytest.raises(InvalidRequest):
            platform(path)


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_a_site_of_each(name: str, tmp_path: Path) -> None:
    site, kind = SiteDirectory(tmp_path / "site"), platform(name)
    site.create("mine", 7, kind)
    assert site.settings() == kind.settings_of("mine", 7)
    text = yaml.safe_load(site.settings_file.read_text())
    assert set(text) == set(SiteSettings.model_fields), "every setting is shown"
    assert kind.title
    assert all(source.startswith("https://") for source in kind.sources)


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_the_script_of_an_allocation(name: str, tmp_path: Path) -> None:
    """It is a script that bash reads, with lines that its scheduler reads, and ends in the launcher."""
    site, kind = SiteDirectory(tmp_path / "site"), platform(name)
    site.create("mine", 7, kind)
    settings = site.settings()
    request = BatchJobSpec(
        site_id=7,
        num_nodes=2,
        wall_time_min=30,
        queue=next(iter(settings.allowed_queues), "local"),
        project="mine",
    )
    params = settings.allowed.completed(request.optional_params)
    assert settings.allowed.problems(request) == []
    job = BatchJobRecord(
        **{**request.model_dump(), "optional_params": params}, id=1, state=BatchJobState.QUEUED, created=now()
    )
    scheduler = make_scheduler(settings, site, lambda: None)
    spec = SubmitSpec("1-x", 2, 30, job.queue, job.project, tmp_path / "log", job.optional_params)
    try:
        script = render_script(job, site, scheduler.directives(spec))
    finally:
        scheduler.close()
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=True, timeout=20)
    first, *rest = script.splitlines()
    assert first == "#!/bin/bash"
    assert re.fullmatch(r"exec .*-m balsam_exec.launcher .*", rest[-1])
    directives = [line for line in rest if re.match(r"#(SBATCH|PBS|BSUB|flux)", line)]
    if settings.scheduler == "local":
        assert directives == []
        return
    assert directives == rest[: len(directives)], "the scheduler stops reading at the first command"
    assert all(re.fullmatch(DIRECTIVE[settings.scheduler], line) for line in directives), directives
    for value in (*filter(None, params.values()), *settings.allowed_queues.keys() & {job.queue}, "mine"):
        assert any(value in line for line in directives), value


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("polaris", "mpiexec -n 8 --ppn 4 --hosts x1,x2 --cpu-bind none"),
        ("aurora", "mpiexec -n 8 --ppn 4 --hosts x1,x2 --cpu-bind none"),
    ],
)
def test_launch_lines(name: str, words: str) -> None:
    launcher = platform(name).settings_of("mine").mpi_launcher
    job = Resources(num_nodes=2, ranks_per_node=4)
    assert mpi.render(launcher, job, ["x1", "x2"]) == words.split()


@pytest.mark.parametrize(
    ("name", "shape"),
    [("polaris", (32, 4)), ("aurora", (102, 12)), ("perlmutter", (64, 4)), ("frontier", (56, 8))],
)
def test_nodes(name: str, shape: tuple[int, int]) -> None:
    settings = platform(name).settings_of("mine")
    assert (settings.cores, settings.gpus) == shape


def test_what_a_machine_does_not_take_is_said(tmp_path: Path) -> None:
    allowed = platform("polaris").settings_of("mine").allowed
    too_large = BatchJobSpec(site_id=7, num_nodes=3, wall_time_min=61, queue="debug")
    assert len(allowed.problems(too_large)) == 2
    assert allowed.problems(BatchJobSpec(site_id=7, num_nodes=1, wall_time_min=5, queue="no-such"))
    assert allowed.completed({}) == {"filesystems": "home:eagle"}
