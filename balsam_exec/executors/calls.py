"""How calls of Python functions become jobs.

A function that is called again and again is registered once, as an app named by its content, and its jobs only carry
the arguments. One that is small (a reference to a module's function is) or that was not seen before goes along with its
arguments: closures made anew for every call must not leave an app each.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from balsam_exec.apps.codec import join_call
from balsam_exec.apps.payload import call_app, dump_call_arguments, dump_function
from balsam_exec.model.apps import AppRecord, AppSpec
from balsam_exec.model.errors import TooLarge

#: Bytes of a function that are not worth an app.
_SMALL = 400
#: Functions remembered.
_REMEMBERED = 1000


class AppService(Protocol):
    @property
    def max_entity(self) -> int: ...
    def put_app(self, spec: AppSpec) -> AppRecord: ...


class Calls:
    """The calls that one executor submits to a site. Registers their common app: raises what the service raises."""

    def __init__(self, service: AppService, site_id: int) -> None:
        self._site_id = site_id
        self._sys_path = _import_path()
        self._lock = threading.Lock()
        self._seen: OrderedDict[bytes, AppSpec | None] = OrderedDict()
        self._limit = service.max_entity
        self.app_id = service.put_app(call_app(site_id, self._sys_path)).id

    def encode(
        self, function: Callable[..., Any], args: Iterable[Any], kwargs: Mapping[str, Any]
    ) -> tuple[AppSpec | None, bytes]:
        """(the app, the job's arguments); None: the common app. Raises PayloadError, TooLarge."""
        return self.encode_dumped(dump_function(function), dump_call_arguments(args, kwargs))

    def encode_dumped(self, code: bytes, arguments: bytes) -> tuple[AppSpec | None, bytes]:
        """The same for what was serialized already (`dump_function`, `dump_call_arguments`). Raises TooLarge."""
        self._check("the function", code)
        self._check("the arguments", arguments)
        app = self._app_of(code) if len(code) > _SMALL else None
        return app, self._check("the call", join_call(code, arguments)) if app is None else arguments

    def _check(self, what: str, data: bytes) -> bytes:
        if len(data) > self._limit:
            raise TooLarge.entity(what, len(data), self._limit)
        return data

    def _app_of(self, code: bytes) -> AppSpec | None:
        """The app of a function that was seen before."""
        digest = hashlib.sha256(code).digest()
        with self._lock:
            known = digest in self._seen
            app = self._seen.get(digest)
            if known and app is None:
                app = call_app(self._site_id, self._sys_path, function=code)
            self._seen[digest] = app
            self._seen.move_to_end(digest)
            if len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
            return app


def _import_path() -> list[str]:
    """Where functions of the caller's own modules are to be found, if the worker is on the same machine."""
    return [os.path.abspath(entry) for entry in sys.path if os.path.isdir(entry or ".")]
