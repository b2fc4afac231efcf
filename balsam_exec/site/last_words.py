"""What an agent has to say to the service at its end, if that hears it soon."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from balsam_exec.client.service import Service
from balsam_exec.model.errors import BalsamError

log = logging.getLogger(__name__)


@contextmanager
def last_words(service: Service, seconds: float) -> Iterator[Service]:
    """The service, over connections that are cut after so many seconds. What it does not hear is logged, no more."""
    own = service.sibling()
    patience = threading.Timer(seconds, own.close)
    patience.start()
    try:
        yield own
    except BalsamError as error:
        log.warning("%s", error)
    finally:
        patience.cancel()
        own.close()
