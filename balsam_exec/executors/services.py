"""The service that an executor uses, and for how long it puts up with its absence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balsam_exec.client.config import load_service
from balsam_exec.client.service import Service
from balsam_exec.executors.engine import PATIENCE_SEC
from balsam_exec.model.errors import ConfigurationError

if TYPE_CHECKING:
    from balsam_exec.embedded import Deployment

#: Seconds a temporary deployment may be unreachable before its executor gives up: nobody else would mend it.
TEMPORARY_PATIENCE = 30.0


def find_service() -> tuple[Service, Deployment | None]:
    """The configured service; where none is, that of a temporary deployment, which the caller has to stop.

    Raises BalsamError if that cannot be started.
    """
    try:
        return load_service(), None
    except ConfigurationError:
        from balsam_exec.embedded import Deployment

        deployment = Deployment.start(temporary=True)
        return deployment.service(), deployment


def patience(deployment: Deployment | None) -> float:
    """How long, in seconds, an executor on the service of this deployment waits for it."""
    return TEMPORARY_PATIENCE if deployment else PATIENCE_SEC
