"""What an executor knows of an application: an ApplicationDefinition, or an executable of this machine."""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from libensemble.executors.executor import Application, ExecutorException

from balsam_exec.api.binding import Client
from balsam_exec.client.files import local_data
from balsam_exec.model.apps import AppRecord, AppSpec, ParameterSpec


class RegisteredApp(Application):  # type: ignore[misc]
    """An Application of libEnsemble, and the app at a site that stands for it."""

    def __init__(self, *application: Any, record: AppRecord, data: Path | None, executable: bool = False) -> None:
        super().__init__(*application)
        self.record = record
        self.data = data  #: the directory of the site's workdirs, if the site is on this machine
        self.executable = executable  #: of this machine, rather than an ApplicationDefinition

    def __getstate__(self) -> dict[str, Any]:
        # Without the class: one of the calling script's main block is not there in a spawned worker, nor needed.
        return {**self.__dict__, "pyobj": None}


def of_definition(
    client: Client, app: type, name: str | None, calc_type: str | None, desc: str | None
) -> RegisteredApp:
    """Registers the ApplicationDefinition at its site; by default it goes by the first word of its template."""
    record = client.sync(app)
    template = record.command_template
    program = template.split()[0] if template and template.strip() else record.name
    data = local_data(client.service.site(record.site_id), os.R_OK | os.W_OK)
    return RegisteredApp(program, name or program, calc_type, desc, app, "", record=record, data=data)


def of_executable(
    client: Client, site: Any, path: str, name: str | None, calc_type: str | None, desc: str | None, precedent: str
) -> RegisteredApp:
    """Registers an app at the site for whatever command line; the site has to be on this machine."""
    at = client.service.site(client.site_id(site))
    data = local_data(at, os.R_OK | os.W_OK)
    if data is None:
        raise ExecutorException(
            f"an executable is run where libEnsemble runs, and the site {at.name} is {at.path or 'elsewhere'} on "
            f"{at.hostname or 'another machine'}: register an ApplicationDefinition for it, or name a local site"
        )
    name = name or os.path.basename(path)
    spec = AppSpec(
        site_id=at.id,
        name=re.sub(r"\W", "_", f"{Application.prefix}_{name}", flags=re.ASCII)[:100],
        description=desc or f"{name}, as libEnsemble registered it: the command line comes with each job",
        command_template="{{ command }}",
        parameters={"command": ParameterSpec(help="program and arguments")},
    )
    record = client.service.put_app(spec)
    return RegisteredApp(path, name, calc_type, desc, None, precedent, record=record, data=data, executable=True)


def workdir_for(workflow: str, directory: str) -> str:
    """The name below a site's data directory of a directory elsewhere on this machine: one for each."""
    return f"{workflow}/at-{hashlib.sha256(directory.encode()).hexdigest()[:20]}"


def link(data: Path, workdir: str, directory: str) -> None:
    """Make the workdir of the site be that directory."""
    path = os.path.join(data, workdir)
    if not os.path.islink(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with suppress(FileExistsError):  # another worker was faster, with the same
            os.symlink(directory, path, target_is_directory=True)
