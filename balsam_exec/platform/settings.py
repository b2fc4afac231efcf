"""A site's `settings.yml`: what its agent and its launchers need to know of the machine (seed 001 "settings.yml")."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from balsam_exec.model.base import Id, Name, Tags
from balsam_exec.model.batch_jobs import JobMode
from balsam_exec.model.errors import ConfigurationError
from balsam_exec.model.jobs import Affinity
from balsam_exec.platform.mpi import Launcher

FILE_NAME = "settings.yml"

SchedulerName = Literal["local", "slurm", "pbs", "lsf", "flux"]

_TEMPLATE = """\
# Settings of this Balsam site. Its agent and its launchers read them when they start.

# The name the site was registered under. The service may know it by another one since: the id is what counts.
name: {name}

# The id of the site at the service; written when it is registered.
site_id: {site_id}

# The batch scheduler that gives allocations: slurm, pbs, lsf, flux; "local" starts them at once on this machine.
scheduler: local

# Seconds between two looks at its queue (not for "local").
scheduler_poll_sec: 10

# Cores and GPUs of one node. null: as many as the machine of the launcher has.
cores: null
gpus: null

# Whether jobs are bound to cores of their own where they do not say: none, depth. What starts MPI ranks: mpiexec, srun.
cpu_affinity: none
mpi_launcher: mpiexec

# A launcher ends after so many seconds without work, unless its batch job says otherwise.
idle_ttl_sec: 60

# Hooks of apps run beside the agent in so many processes (null: one for each core, at most 4). One that takes longer
# than so many seconds is ended, and its job failed.
processing:
  workers: null
  hook_timeout_sec: 600

# Whether to remove from the workdirs of finished jobs what the cleanup_files of their apps name.
file_cleaner:
  enabled: false

# Whether the agent requests allocations by itself, sized to the jobs that wait, within these limits.
elastic_queue:
  enabled: false
  submit_queue: local
  submit_project: local
  job_mode: mpi
  min_num_nodes: 1
  max_num_nodes: 1
  min_wall_time_min: 35
  max_wall_time_min: 360
  wall_time_pad_min: 5
  max_queued_jobs: 1
  use_backfill: false

# Whether the agent keeps so many allocations, all alike, in the queue or running.
queue_maintainer:
  enabled: false
  submit_queue: local
  submit_project: local
  job_mode: mpi
  num_queued_jobs: 1
  num_nodes: 1
  wall_time_min: 60
"""


class ProcessingSettings(BaseModel):
    """How the agent runs the hooks of jobs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    workers: int | None = Field(default=None, ge=1, le=1_000)  #: processes; None: one for each core, at most 4
    hook_timeout_sec: float = Field(default=600, gt=0, le=86_400)  #: after so long a hook is ended, and its job FAILED


class FileCleanerSettings(BaseModel):
    """What the agent removes when jobs have finished."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = False  #: whether what an app's `cleanup_files` name is removed from workdirs of its finished jobs


class SubmissionSettings(BaseModel):
    """What the agent puts into the allocations that it requests by itself, and when it looks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = False  #: whether it does so at all
    submit_queue: str = Field(default="local", max_length=200)  #: the scheduler's
    submit_project: str = Field(default="local", max_length=200)  #: that pays
    job_mode: JobMode = "mpi"  #: of the allocations
    optional_params: dict[str, str] = {}  #: for the scheduler
    filter_tags: Tags = {}  #: for jobs that carry all of these only
    service_period: float = Field(default=60, gt=0, le=86_400)  #: seconds between two looks, when nothing happens
    quiet_sec: float = Field(default=2, ge=0, le=3_600)  #: after something happens it lets more happen for so long


class ElasticQueueSettings(SubmissionSettings):
    """The limits of the elastic queue."""

    min_num_nodes: int = Field(default=1, ge=1, le=1_000_000)  #: of an allocation
    max_num_nodes: int = Field(default=1, ge=1, le=1_000_000)  #: of an allocation
    max_total_nodes: int | None = Field(default=None, ge=1)  #: of all its allocations together, waiting or running
    min_wall_time_min: int = Field(default=35, ge=1, le=10_000_000)  #: of an allocation
    max_wall_time_min: int = Field(default=360, ge=1, le=10_000_000)  #: of an allocation
    #: Minutes at the end of an allocation that are not counted on for jobs, and between its end and a window's.
    wall_time_pad_min: int = Field(default=5, ge=0, le=10_000_000)
    max_queued_jobs: int = Field(default=1, ge=1, le=10_000)  #: allocations, waiting or running
    #: One that has waited for so long is taken back, and what is needed then requested anew. None: it waits.
    max_queue_wait_time_min: int | None = Field(default=None, ge=1)
    use_backfill: bool = False  #: whether nodes that are idle for a while are filled first, as far as they are known

    @model_validator(mode="after")
    def _room_for_jobs(self) -> Self:
        if self.min_wall_time_min <= self.wall_time_pad_min:
            raise ValueError("wall_time_pad_min leaves no time of min_wall_time_min for jobs")
        if self.max_wall_time_min < self.min_wall_time_min:
            raise ValueError("max_wall_time_min is less than min_wall_time_min")
        if self.max_num_nodes < self.min_num_nodes:
            raise ValueError("max_num_nodes is less than min_num_nodes")
        if self.max_total_nodes is not None and self.max_total_nodes < self.min_num_nodes:
            raise ValueError("max_total_nodes is less than min_num_nodes")
        if self.use_backfill and self.submit_queue == "local":
            raise ValueError("use_backfill wants the name of a queue, submit_queue: idle nodes are those of one")
        return self


class QueueMaintainerSettings(SubmissionSettings):
    """A fixed number of allocations that are all alike."""

    num_queued_jobs: int = Field(default=1, ge=1, le=10_000)  #: allocations, waiting or running
    num_nodes: int = Field(default=1, ge=1, le=1_000_000)  #: of each
    wall_time_min: int = Field(default=60, ge=1, le=10_000_000)  #: of each


class SiteSettings(BaseModel):
    """The settings of one site. Unknown keys are refused: a misspelt one would silently do nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    site_id: Id | None = None  #: None: not registered yet
    scheduler: SchedulerName = "local"
    cores: int | None = Field(default=None, ge=1, le=100_000)  #: of a node; None: detected
    gpus: int | None = Field(default=None, ge=0, le=1_000)  #: of a node; None: detected
    idle_ttl_sec: int = Field(default=60, ge=0)
    #: Whether jobs are bound to cores of their own ("depth") where their launch_params do not say.
    cpu_affinity: Affinity = "none"
    mpi_launcher: Launcher = "mpiexec"  #: the program that starts the ranks of jobs
    #: Seconds between the SIGTERM that ends an allocation and the SIGKILL of what is left of it.
    cancel_grace_sec: float = Field(default=30, ge=0, le=86_400)
    #: Seconds between two looks at the queue of a batch scheduler (not "local", which tells by itself).
    scheduler_poll_sec: float = Field(default=10, gt=0, le=3_600)
    processing: ProcessingSettings = ProcessingSettings()  #: of hooks
    file_cleaner: FileCleanerSettings = FileCleanerSettings()  #: of files that apps declare as disposable
    elastic_queue: ElasticQueueSettings = ElasticQueueSettings()  #: of allocations sized to the jobs that wait
    queue_maintainer: QueueMaintainerSettings = QueueMaintainerSettings()  #: of allocations that are always there

    @field_validator("elastic_queue", "queue_maintainer", mode="before")
    @classmethod
    def _null_is_off(cls, value: object) -> object:
        return {} if value is None else value

    @classmethod
    def load(cls, directory: Path) -> Self:
        """The settings of the site at `directory`. Raises ConfigurationError, naming the file and each wrong key."""
        path = directory / FILE_NAME
        try:
            values = yaml.safe_load(path.read_bytes())
        except FileNotFoundError:
            raise ConfigurationError(f"{directory} is not a site: make it one with `balsam site init`") from None
        except OSError as error:
            raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
        except yaml.YAMLError as error:
            raise ConfigurationError(f"{path} is not YAML: {error}") from error
        if not isinstance(values, dict):
            raise ConfigurationError(f"{path} holds no settings: `name: ...` at least")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigurationError(f"{path}: {_problems(error)}") from None


class SiteDirectory:
    """Where a site keeps its things."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.settings_file = self.path / FILE_NAME
        self.job_template = self.path / "job-template.sh"
        self.data = self.path / "data"
        self.log = self.path / "log"
        self.qsubmit = self.path / "qsubmit"
        self.exchange = self.path / "exchange"

    @property
    def exists(self) -> bool:
        return self.settings_file.exists()

    def settings(self) -> SiteSettings:
        return SiteSettings.load(self.path)

    def create(self, name: str, site_id: int | None = None) -> None:
        """Make it a site: settings.yml, job-template.sh, data/, log/, qsubmit/. What is there already stays."""
        for directory in (self.data, self.log, self.qsubmit):
            directory.mkdir(parents=True, exist_ok=True)
        if not self.job_template.exists():
            self.job_template.write_text(_JOB_TEMPLATE)
        if not self.exists:
            self._write(_TEMPLATE.format(name=_scalar(name), site_id=_scalar(site_id)))

    def record_id(self, site_id: int) -> None:
        """Set `site_id` in settings.yml, leaving every other line, comments too, as its owner wrote it."""
        text = self.settings_file.read_text()
        line = f"site_id: {site_id}"
        changed, count = re.subn(r"^site_id:.*$", line, text, count=1, flags=re.MULTILINE)
        self._write(changed if count else f"{text.rstrip()}\n{line}\n")

    def _write(self, text: str) -> None:
        fd, temporary = tempfile.mkstemp(dir=self.path, prefix=".settings-")
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, self.settings_file)


def _scalar(value: object) -> str:
    """One value as YAML, on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()


def _problems(error: ValidationError) -> str:
    found = []
    for item in error.errors():
        key = ".".join(map(str, item["loc"]))
        if item["type"] == "extra_forbidden":
            found.append(f"there is no setting {key!r} (there are: {', '.join(_beside(item['loc']))})")
        else:
            found.append(f"{key}: {item['msg']}")
    return "; ".join(found)


def _beside(place: tuple[int | str, ...]) -> Iterable[str]:
    """The settings of the section that this one is in."""
    section: type[BaseModel] = SiteSettings
    for key in place[:-1]:
        section = type(section.model_fields[str(key)].default)
    return section.model_fields


_JOB_TEMPLATE = """\
#!/bin/bash
{{ directives }}
# The script that each allocation of this site runs, a Jinja2 template. Load modules and set variables here: jobs
# inherit them. It may use: job (the batch job), site_dir, python, launcher (the command that runs the jobs), directives
# (the lines that ask the batch scheduler for nodes, time, queue, project and optional_params; more may follow them).
#
# Keep `exec`, so that the scheduler's signals reach the launcher: it then has its jobs restarted elsewhere.

exec {{ launcher }}
"""
