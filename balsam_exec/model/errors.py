"""Every error this package raises on purpose, in one tree; each message says what to do next.

BalsamError
|- InvalidRequest            the caller's mistake; never retried
|  |- ParameterError         an app's parameters: missing, unknown, not an identifier
|  |- IllegalTransition      a state that cannot follow, or not by this actor
|  |- NotAllowed             a site's settings do not let allocations ask for this; names what they allow
|  `- TooLarge               over a limit; names the limit and the size
|- NotFound
|  `- DoesNotExist           `objects.get` found nothing
|- MultipleObjectsReturned   `objects.get` found several
|- Conflict                  somebody else was first
|  `- StaleLease             the job now belongs to another session
|- NotAuthenticated          no token, or one that is unknown, expired or revoked
|- Forbidden
|- PayloadError              something could not be serialized or loaded
|- JobFailed                 a job ended without success and without a Python exception to re-raise
|  |- WorkerDied             the process that ran it died (signal, os._exit, out of memory)
|  |- JobTimeout             it ran out of its allocation's time and was not restarted
|  `- JobCancelled           its owner killed it; a concurrent.futures.CancelledError too
|- ConfigurationError        no service, no site, no credentials
|- SiteUnreachable           the agent of a site did not answer in time
`- ServiceUnavailable        transient: the service could not be reached or is overloaded
"""

from __future__ import annotations

from concurrent.futures import CancelledError
from typing import Any, ClassVar, Self


class BalsamError(Exception):
    """The root. `code` names the class on the wire, `status` is its HTTP status, `detail` is for programs."""

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500
    #: Whether the same request may succeed when it is sent again.
    transient: ClassVar[bool] = False

    def __init__(self, message: str = "", **detail: Any) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail


class InvalidRequest(BalsamError, ValueError):
    code = "invalid_request"
    status = 422


class ParameterError(InvalidRequest):
    code = "parameter_error"


class IllegalTransition(InvalidRequest):
    code = "illegal_transition"
    status = 409


class NotAllowed(InvalidRequest):
    """`detail["problems"]` has each of the reasons."""

    code = "not_allowed"


class TooLarge(InvalidRequest):
    code = "too_large"
    status = 413

    @classmethod
    def entity(cls, what: str, size: int, limit: int) -> Self:
        """For something serialized that has more bytes than its service takes."""
        return cls(
            f"{what} has {size} bytes serialized and the limit is {limit}: keep large data in files and pass their "
            "paths, or use transfers (the limit is the service's, max_entity)",
            size=size,
            limit=limit,
        )


class NotFound(BalsamError, LookupError):
    code = "not_found"
    status = 404


class DoesNotExist(NotFound):
    code = "does_not_exist"


class MultipleObjectsReturned(BalsamError, LookupError):
    code = "multiple_objects"
    status = 409


class Conflict(BalsamError):
    code = "conflict"
    status = 409


class StaleLease(Conflict):
    """`detail["job_ids"]` lists the jobs of the report whose lease is over. Nothing of the report was recorded."""

    code = "stale_lease"


class NotAuthenticated(BalsamError):
    code = "not_authenticated"
    status = 401


class Forbidden(BalsamError):
    code = "forbidden"
    status = 403


class PayloadError(BalsamError):
    code = "payload_error"
    status = 422


class JobFailed(BalsamError):
    code = "job_failed"


class WorkerDied(JobFailed):
    code = "worker_died"


class JobTimeout(JobFailed):
    code = "job_timeout"


class JobCancelled(JobFailed, CancelledError):
    code = "job_cancelled"


class ConfigurationError(BalsamError):
    code = "configuration_error"


class SiteUnreachable(BalsamError):
    """The service is there, but the agent of a site is not, or not in time. Nothing is wrong with the request."""

    code = "site_unreachable"
    status = 504


class ServiceUnavailable(BalsamError, ConnectionError):
    code = "service_unavailable"
    status = 503
    transient = True


def _tree(root: type[BalsamError]) -> dict[str, type[BalsamError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found.update(_tree(child))
    return found


#: From the code on the wire to the class to raise.
BY_CODE: dict[str, type[BalsamError]] = _tree(BalsamError)
