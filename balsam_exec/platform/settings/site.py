"""A site's settings: what its agent and its launchers need to know of the machine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from balsam_exec.model.allowed import Allowed, QueueLimits
from balsam_exec.model.base import Id, Name
from balsam_exec.model.errors import ConfigurationError
from balsam_exec.model.jobs import Affinity
from balsam_exec.model.sessions import SortBy
from balsam_exec.platform.mpi import check_launcher, check_template
from balsam_exec.platform.settings.sections import (
    ElasticQueueSettings,
    FileCleanerSettings,
    ProcessingSettings,
    QueueMaintainerSettings,
    SubmissionSettings,
)

FILE_NAME = "settings.yml"

SchedulerName = Literal["local", "slurm", "pbs", "lsf", "flux"]
MpiLauncher = Annotated[str, AfterValidator(check_launcher)]
Template = Annotated[str, AfterValidator(check_template)]


class SiteSettings(BaseModel):
    """The settings of one site. Unknown keys are refused: a misspelt one would silently do nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    site_id: Id | None = None  #: None: not registered yet
    scheduler: SchedulerName = "local"
    cores: int | None = Field(default=None, ge=1, le=100_000)  #: of a node; None: detected
    gpus: int | None = Field(default=None, ge=0, le=1_000)  #: of a node; None: detected
    idle_ttl_sec: int = Field(default=60, ge=0)
    #: Which jobs launchers take first: of the fewest nodes, or ("long_large_first") those that take longest.
    sort_by: SortBy = "small_first"
    #: Whether jobs are bound to cores of their own ("depth") where their launch_params do not say.
    cpu_affinity: Affinity = "none"
    #: What starts the ranks of jobs: "mpiexec", "srun", or a Jinja2 template of its words.
    mpi_launcher: MpiLauncher = "mpiexec"
    #: A template of the words that start a launcher on each node; None: srun in Slurm, else as `mpi_launcher` has it.
    node_launcher: Template | None = None
    #: Seconds between the SIGTERM that ends an allocation and the SIGKILL of what is left of it.
    cancel_grace_sec: float = Field(default=30, ge=0, le=86_400)
    #: Seconds between two looks at the queue of a batch scheduler (not "local", which tells by itself).
    scheduler_poll_sec: float = Field(default=10, gt=0, le=3_600)
    #: The queues that allocations may ask for, and what of each; {}: any that the scheduler has.
    allowed_queues: dict[Name, QueueLimits] = {}
    allowed_projects: list[Name] = []  #: that may pay for allocations; []: any
    #: The optional_params that allocations may have -> what those have that do not say, null: nothing. {}: any.
    optional_batch_job_params: dict[Name, str | None] = {}
    processing: ProcessingSettings = ProcessingSettings()  #: of hooks
    file_cleaner: FileCleanerSettings = FileCleanerSettings()  #: of files that apps declare as disposable
    elastic_queue: ElasticQueueSettings = ElasticQueueSettings()  #: of allocations sized to the jobs that wait
    queue_maintainer: QueueMaintainerSettings = QueueMaintainerSettings()  #: of allocations that are always there

    @field_validator("elastic_queue", "queue_maintainer", mode="before")
    @classmethod
    def _null_is_off(cls, value: object) -> object:
        return {} if value is None else value

    @field_validator("elastic_queue", "queue_maintainer")
    @classmethod
    def _asks_for_what_is_allowed(cls, section: SubmissionSettings, info: ValidationInfo) -> SubmissionSettings:
        allowed = Allowed(**{name: info.data[name] for name in Allowed.model_fields if name in info.data})
        if section.enabled and (problems := section.problems(allowed)):
            raise ValueError(f"it asks for what this site does not allow: {'; '.join(problems)}")
        return section

    @property
    def allowed(self) -> Allowed:
        """What allocations may ask for, whoever requests them."""
        return Allowed(**{name: getattr(self, name) for name in Allowed.model_fields})

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
    section: Any = SiteSettings
    for key in place[:-1]:
        fields = getattr(section, "model_fields", None)
        section = get_args(section)[-1] if fields is None else fields[str(key)].annotation  # of a dict: its values
    return list(section.model_fields)
