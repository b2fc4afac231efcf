"""Where a deployment keeps its things, and what it notes there about itself."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from balsam_exec.platform.processes import Process

#: The name of the default local site.
SITE_NAME = "local"


class Layout:
    """The files below one `$BALSAM_HOME`."""

    def __init__(self, home: Path) -> None:
        self.home = home.absolute()
        self.run = self.home / "run"
        self.service = self.home / "service"
        self.site = self.home / "site"
        self.state_file = self.run / "state.json"
        #: Held by whoever starts the deployment, and by the supervisor until it is ready.
        self.up_lock = self.run / "up.lock"
        #: Held by the supervisor as long as it lives.
        self.supervisor_lock = self.run / "supervisor.lock"
        self.config_file = self.service / "config.json"
        self.bootstrap_file = self.service / "bootstrap.json"
        self.logs = {
            "supervisor": self.run / "supervisor.log",
            "service": self.service / "service.log",
            "agent": self.site / "log" / "agent.log",
        }

    @property
    def default_database(self) -> str:
        return f"sqlite:///{self.service / 'balsam.db'}"

    def create(self) -> None:
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        for directory in (self.run, self.service):
            directory.mkdir(mode=0o700, exist_ok=True)
        self.logs["agent"].parent.mkdir(parents=True, exist_ok=True)

    def log_tail(self, part: str, lines: int = 15) -> str:
        """The end of a part's log."""
        try:
            with self.logs[part].open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 16_384))
                text = file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])


def read_json(path: Path) -> dict[str, Any]:
    """The object in the file, {} if there is none."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    return found if isinstance(found, dict) else {}


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replace the file in one step; it is readable by its owner alone."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def recorded(state: dict[str, Any], part: str) -> Process | None:
    """The process of a part as the state file has it; it may have ended."""
    found = state.get(part)
    return Process(found["pid"], found["start"]) if found else None


def without_password(database: str) -> str:
    """A database's URL that may be shown."""
    return re.sub(r"(://[^:/@]*):.*@", r"\1:***@", database)
