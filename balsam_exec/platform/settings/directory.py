"""Where a site keeps its things, and how its directory is made."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

from balsam_exec.model.errors import ConfigurationError
from balsam_exec.platform.settings.site import FILE_NAME, SiteSettings
from balsam_exec.platform.settings.text import job_template, scalar, settings_text

if TYPE_CHECKING:
    from balsam_exec.platform.platforms import Platform


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

    @classmethod
    def around(cls, path: Path) -> Self | None:
        """The site that `path` is in."""
        found = (cls(directory) for directory in (path.absolute(), *path.absolute().parents))
        return next((site for site in found if site.exists and site.qsubmit.is_dir()), None)

    @property
    def exists(self) -> bool:
        return self.settings_file.exists()

    def settings(self) -> SiteSettings:
        return SiteSettings.load(self.path)

    def make(self) -> None:
        """Its directories, as far as they are not there. Raises ConfigurationError."""
        try:
            for directory in (self.data, self.log, self.qsubmit):
                directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"cannot make a site of {self.path}: {error}") from error

    def create(self, name: str, site_id: int | None = None, platform: Platform | None = None) -> None:
        """Make it a site: settings.yml, job-template.sh, data/, log/, qsubmit/. What is there already stays. With the
        defaults, or as a platform has it. Raises ConfigurationError where it cannot be made."""
        self.make()
        directives, setup = (platform.directives, platform.setup) if platform else ([], "")
        settings = (platform.settings_of if platform else SiteSettings)(name=name, site_id=site_id)
        if not self.job_template.exists():
            self.job_template.write_text(job_template(directives, setup))
        if not self.exists:
            self._write(settings_text(settings))

    def record_id(self, site_id: int) -> None:
        """Set `site_id` in settings.yml."""
        self._set("site_id", str(site_id))

    def record_name(self, name: str) -> None:
        """Set `name` in settings.yml."""
        self._set("name", scalar(name))

    def _set(self, key: str, value: str) -> None:
        """Leaving every other line, comments too, as its owner wrote it."""
        text = self.settings_file.read_text()
        line = f"{key}: {value}"
        changed, count = re.subn(rf"^{key}:.*$", lambda _: line, text, count=1, flags=re.MULTILINE)
        self._write(changed if count else f"{text.rstrip()}\n{line}\n")

    def _write(self, text: str) -> None:
        fd, temporary = tempfile.mkstemp(dir=self.path, prefix=".settings-")
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, self.settings_file)
