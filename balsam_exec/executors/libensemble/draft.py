"""From an app and its arguments to a task and what its job is made of."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from libensemble.executors.executor import Executor, ExecutorException
from pydantic import ValidationError

from balsam_exec.client.lookups import explain
from balsam_exec.executors.libensemble.apps import RegisteredApp, link, workdir_for
from balsam_exec.executors.libensemble.request import command_line, inputs_of, output_name, words_of
from balsam_exec.executors.libensemble.task import BalsamTask
from balsam_exec.model.errors import BalsamError
from balsam_exec.model.jobs import STDOUT, JobSpec

#: Variables that belong to this process rather than to what it runs.
_OWN_VARIABLES = re.compile(r"(OLD)?PWD$|_$|BALSAM_|PMIX?_|OMPI_|MPI_|HYDI?_")


def for_executable(
    executor: Executor,
    workflow: str,
    app: RegisteredApp,
    app_args: Any,
    stdout: str | None,
    stderr: str | None,
    env_script: str | None,
    environment: Mapping[str, str],
    dry_run: bool,
) -> tuple[BalsamTask, dict[str, Any]]:
    """A task in the present directory, as with MPIExecutor, and the fields of its job that are due to the app."""
    assert app.data is not None
    here = os.getcwd()
    task = BalsamTask(app, app_args, here, stdout, stderr, executor.workerID, dry_run)
    words = executor._set_sim_dir_env(task, [*app.app_cmd.split(), *words_of(app_args)])
    workdir = workdir_for(workflow, here)
    outputs = output_name(task.stdout, here), output_name(task.stderr, here)
    if not dry_run:
        executor._check_app_exists(app)
        link(app.data, workdir, here)
        for name in outputs:
            # Empty, for the launcher appends; and made here, since all wait for the launcher. Directories are its.
            with suppress(FileNotFoundError), open(os.path.join(here, name), "wb"):
                pass
        if env_script is not None:
            words = executor._process_env_script(task, words, env_script)
    task.runline = " ".join(words)
    if "/" in words[0]:
        words[0] = os.path.join(here, words[0])  # needs no shell to be found
    # LIBENSEMBLE_SIM_DIR is for containers, which stand before the executable; `env` costs a task a millisecond.
    variables = {**environment, **task.env} if app.precedent else environment
    prefix = ["env", *(f"{name}={value}" for name, value in variables.items())] if variables else []
    return task, {
        "workdir": workdir,
        "stdout": outputs[0],
        "stderr": "" if outputs[1] == outputs[0] else outputs[1],
        "parameters": {"command": [*prefix, *words]},
    }


def for_definition(
    executor: Executor,
    workflow: str,
    app: RegisteredApp,
    app_args: Any,
    stdout: str | None,
    stderr: str | None,
    workdir: str,
    dry_run: bool,
) -> tuple[BalsamTask, dict[str, Any]]:
    """A task of an ApplicationDefinition, and the fields of its job that are due to the app."""
    stdout = stdout or STDOUT
    task = BalsamTask(app, app_args, None, stdout, stderr or stdout, executor.workerID, dry_run)
    # Tasks of different processes may have the same name.
    place = f"{workflow}/{workdir or f'{task.name}_{uuid.uuid4().hex[:8]}'}"
    task.workdir = place if app.data is None else str(app.data / place)
    try:
        inputs = inputs_of(app, app_args)
        task.runline = command_line(app.record, inputs.parameters)
    except BalsamError as error:
        raise ExecutorException(str(error)) from error
    return task, {
        "workdir": place,
        "stdout": stdout,
        "stderr": stderr or "",
        "parameters": inputs.parameters,
        "arguments": inputs.arguments,
    }


def job_spec(task: BalsamTask, fields: Mapping[str, Any]) -> JobSpec:
    """The job of the task; it says what `reattach` needs. Raises ExecutorException for what no job can be."""
    noted = {"task": task.name, "app": task.app.name, "worker": task.workerID, "workdir": task.workdir}
    try:
        return JobSpec(app_id=task.app.record.id, data={"libe": noted}, **fields)
    except ValidationError as error:
        raise ExecutorException(explain(error)) from None


def changed_environment(before: Mapping[str, str]) -> dict[str, str]:
    """The variables that were set since, by user functions for what they run."""
    changed = {name: value for name, value in os.environ.items() if before.get(name) != value}
    return {name: value for name, value in changed.items() if not _OWN_VARIABLES.match(name)}
