"""The files that make a directory a site, as they are written for people to read and change."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any

import yaml

from balsam_exec.platform.settings.site import SiteSettings

#: Lines of job-template.sh: those for the batch scheduler, and the last.
_DIRECTIVES, _LAUNCH = "{{ directives }}\n", "exec {{ launcher }}\n"
_TEMPLATES = resources.files(__package__) / "templates"


def settings_text(settings: SiteSettings) -> str:
    """The settings.yml that says this, with comments."""
    import jinja2  # launchers read settings and never write them

    values = settings.model_dump(mode="json")
    template = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True).from_string(
        (_TEMPLATES / "settings.yml.j2").read_text(encoding="utf-8")
    )
    return template.render(setting=lambda name: _entry(name, values[name]))


def _entry(name: str, value: Any) -> str:
    """One setting as YAML: a scalar on one line, a section or a list below its name."""
    if isinstance(value, dict | list) and value:
        return yaml.safe_dump({name: value}, sort_keys=False, allow_unicode=True, width=1_000).rstrip()
    return f"{name}: {scalar(value)}"


def scalar(value: object) -> str:
    """One value as YAML, on one line."""
    style = '"' if isinstance(value, str) and not value.isprintable() else None  # escapes what would begin a line
    return (
        yaml.safe_dump(value, default_style=style, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
    )


def job_template(directives: Sequence[str] = (), setup: str = "") -> str:
    """A job-template.sh, with more lines for the batch scheduler and shell commands before the launcher."""
    text = (_TEMPLATES / "job-template.sh").read_text(encoding="utf-8")
    more = "".join(f"{line}\n" for line in directives)
    commands = f"{setup}\n" if setup else ""
    return text.replace(_DIRECTIVES, _DIRECTIVES + more, 1).replace(_LAUNCH, commands + _LAUNCH, 1)
