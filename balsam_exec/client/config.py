"""Which service to talk to, and as whom: the environment first, then `$BALSAM_HOME/credentials.json`.

Plain environment reading rather than a settings library: every short-lived process of a campaign pays for this import.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

from balsam_exec.model.errors import ConfigurationError

if TYPE_CHECKING:
    from balsam_exec.client.service import Service

_WAY_OUT = "start a service of your own with `balsam up`, or log in to one with `balsam login URL`"


class Credentials(BaseModel):
    """What one needs to use a service. The token shows in no repr."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    url: str
    token: SecretStr
    site: str | None = None  #: the name (or id) of the default site

    def variables(self) -> dict[str, str]:
        """What in its environment makes another process use the same."""
        found = {"BALSAM_URL": self.url, "BALSAM_TOKEN": self.token.get_secret_value()}
        return found if self.site is None else {**found, "BALSAM_SITE": self.site}


def home(environ: Mapping[str, str] | None = None) -> Path:
    """The user's state directory: `$BALSAM_HOME`, by default `~/.balsam`."""
    environ = os.environ if environ is None else environ
    return Path(environ.get("BALSAM_HOME") or "~/.balsam").expanduser()


def credentials_path(environ: Mapping[str, str] | None = None) -> Path:
    return home(environ) / "credentials.json"


def load_credentials(environ: Mapping[str, str] | None = None) -> Credentials:
    """`BALSAM_URL`, `BALSAM_TOKEN` and `BALSAM_SITE` over the credentials file.

    The file's token is the secret of the file's service: with another `BALSAM_URL` it is not used.
    Raises ConfigurationError, which says what to do.
    """
    environ = os.environ if environ is None else environ
    overrides = {
        name: environ[variable]
        for name in ("url", "token", "site")
        if environ.get(variable := f"BALSAM_{name.upper()}")
    }
    path = credentials_path(environ)
    stored = _read(path)
    if overrides.get("url", "").rstrip("/") not in ("", str(stored.get("url", "")).rstrip("/")):
        stored = {}
    found = {**stored, **overrides}
    if "url" not in found:
        raise ConfigurationError(f"no service is configured (neither BALSAM_URL nor {path}): {_WAY_OUT}")
    if "token" not in found:
        raise ConfigurationError(f"no token for {found['url']}: set BALSAM_TOKEN, or `balsam login {found['url']}`")
    try:
        return Credentials.model_validate(found)
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, e["loc"])) for e in error.errors())
        raise ConfigurationError(f"{path} is damaged ({fields}): {_WAY_OUT}") from None


def save_credentials(credentials: Credentials, environ: Mapping[str, str] | None = None) -> Path:
    """Write the credentials file, readable by its owner alone, in one step (a reader sees the old or the new)."""
    path = credentials_path(environ)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    shown = {**credentials.model_dump(), "token": credentials.token.get_secret_value()}
    text = _Stored.model_validate(shown).model_dump_json(indent=2) + "\n"
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=".credentials-")  # mkstemp makes it 0600
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    return path


def remove_credentials(environ: Mapping[str, str] | None = None) -> None:
    credentials_path(environ).unlink(missing_ok=True)


def load_service(environ: Mapping[str, str] | None = None) -> Service:
    """The configured service. Raises ConfigurationError when there is none; does not connect yet."""
    from balsam_exec.client.service import Service  # most of the client's import time; not needed to configure

    credentials = load_credentials(environ)
    return Service(credentials.url, credentials.token.get_secret_value(), default_site=credentials.site)


class _Stored(BaseModel):
    """The credentials file as it is on disk, token in the clear."""

    url: str
    token: str
    site: str | None = None


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    try:
        return _Stored.model_validate_json(text).model_dump(exclude_none=True)
    except ValidationError:
        # Not chained: pydantic would quote the file, and with it the token.
        raise ConfigurationError(f"{path} is damaged: remove it, then {_WAY_OUT}") from None
