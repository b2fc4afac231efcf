"""An app: what a job runs at its site (seed 001 "Writing ApplicationDefinitions")."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from balsam_exec.model.base import Entity, Id, Identifier, Name, Record, Timestamp, Wire
from balsam_exec.model.errors import ParameterError
from balsam_exec.model.states import Step

#: The methods of an ApplicationDefinition that give its jobs another step at the site.
HOOK_STEPS = {
    "preprocess": Step.PREPROCESS,
    "postprocess": Step.POSTPROCESS,
    "handle_error": Step.HANDLE_ERROR,
    "handle_timeout": Step.HANDLE_TIMEOUT,
}


#: The name of an environment variable.
Variable = Annotated[str, StringConstraints(pattern=r"^[^=]+$")]


def container_words(container: str | None) -> list[str]:
    """The words of a container's command line, in which quotes are a shell's and nothing else is; none for None.

    Raises ValueError for what is no such line.
    """
    return [] if container is None else shlex.split(container)


def check_container(value: str) -> str:
    if "\0" in value:
        raise ValueError("a command line has no NUL in it")
    try:
        words = container_words(value)
    except ValueError as error:
        raise ValueError(f"{value!r} is no command line: {error}") from None
    if not words or not words[0]:
        raise ValueError(
            "it names no program: such as apptainer exec /path/image.sif; without a container leave it out"
        )
    return value


class Isolation(StrEnum):
    """How the calls of one Python app are kept apart."""

    WORKER = "worker"  #: call after call in a warm worker process
    PROCESS = "process"  #: a fresh process for each job, forked from a warm parent


class ParameterSpec(Wire):
    """One template parameter: required, or optional with a default."""

    required: bool = True
    default: str | None = None
    help: str = ""

    @model_validator(mode="after")
    def _default_goes_with_optional(self) -> Self:
        if self.required and self.default is not None:
            raise ValueError("a required parameter cannot have a default: set required=False")
        if not self.required and self.default is None:
            raise ValueError("an optional parameter needs a default")
        return self


class TransferSlot(Wire):
    """A file that jobs of the app stage in or out (seed 001 "Transfer Slots")."""

    required: bool = True
    direction: Literal["in", "out"]
    local_path: str = Field(min_length=1, max_length=4000)  #: relative to the workdir; "." keeps the remote name
    description: str = ""
    recursive: bool = False


class AppSpec(Wire):
    """An app to register; (site, name) is unique, and registering it again replaces it.

    Exactly one of `command_template` (a shell command) and `payload` with `hooks` containing "run" (Python) is set.
    """

    site_id: Id
    name: Identifier
    description: str = Field(default="", max_length=20_000)
    command_template: str | None = Field(default=None, max_length=100_000)
    parameters: dict[Identifier, ParameterSpec] = {}
    environment_variables: dict[Variable, str] = {}
    transfers: dict[Name, TransferSlot] = {}
    cleanup_files: list[str] = []
    python_exe: str | None = Field(default=None, max_length=4000)  #: None: the site's own interpreter
    #: The words before what its jobs run, such as "apptainer exec --nv /path/image.sif"; None: it runs bare.
    container: Annotated[str, AfterValidator(check_container)] | None = Field(default=None, max_length=4000)
    isolation: Isolation = Isolation.WORKER
    hooks: list[str] = []  #: the methods it defines: run, preprocess, shell_preamble, ...
    payload: Entity | None = None  #: the serialized class (balsam_exec.apps.payload); opaque to the service

    @model_validator(mode="after")
    def _command_or_run(self) -> Self:
        if (self.command_template is None) == ("run" not in self.hooks):
            raise ValueError("set exactly one of command_template and run()")
        if self.hooks and self.payload is None:
            raise ValueError("an app with methods needs its payload")
        return self

    @property
    def steps(self) -> Step:
        found = Step.NONE
        for hook in self.hooks:
            found |= HOOK_STEPS.get(hook, Step.NONE)
        return found


class AppPatch(Wire):
    """The only change to an app that is not a new registration: another name."""

    name: Identifier


class AppRecord(Record, AppSpec):
    id: Id
    digest: str  #: SHA-256 over everything that decides what runs; caches are keyed by it
    created: Timestamp
    last_update: Timestamp


def check_parameters(app_name: str, declared: Mapping[str, ParameterSpec], given: Mapping[str, object]) -> None:
    """Raise ParameterError unless `given` has every required parameter of a command app and no unknown one."""
    unknown = sorted(set(given) - set(declared))
    missing = sorted(name for name, spec in declared.items() if spec.required and name not in given)
    problems = [f"missing: {', '.join(missing)}"] if missing else []
    problems += [f"unknown: {', '.join(unknown)}"] if unknown else []
    if problems:
        takes = ", ".join(sorted(declared)) or "none"
        raise ParameterError(
            f"parameters of {app_name}: {'; '.join(problems)} (it takes: {takes})", missing=missing, unknown=unknown
        )
