"""Who waits for what: topics and the coroutines to wake when something happened to one of them."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager


class Subscription:
    """Wakes once for any number of publications since the last `wait`, so none is missed and none queues up."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        self._event.set()

    async def wait(self, timeout: float) -> None:
        """Until it is woken, `timeout` seconds at most."""
        timer = asyncio.get_running_loop().call_later(timeout, self._event.set)
        try:
            await self._event.wait()
        finally:
            timer.cancel()
        self._event.clear()


#: Topics whose last publication is remembered.
_REMEMBERED = 10_000


class Hub:
    """Publish from any thread; subscribe in the event loop that `start` was called in."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0  #: the loop's
        self._waiting: defaultdict[str, set[Subscription]] = defaultdict(set)
        self._callbacks: defaultdict[str, list[Callable[[], None]]] = defaultdict(list)
        self.closed = False
        #: Grows with every publication: where it has not grown, nobody has missed anything.
        self.generation = 0
        self.name = uuid.uuid4().hex[:8]  #: whose generations these are
        self._published: dict[str, int] = {}  #: the generation of a topic's last publication
        self._forgotten = 0  #: up to this generation, publications may be missing there

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    def publish(self, topics: Iterable[str]) -> None:
        """Wake those who wait for any of the topics. Thread-safe; before `start` nobody waits."""
        names = tuple(topics)
        if not names or self._loop is None or self._loop.is_closed():
            return
        if threading.get_ident() == self._thread:
            self._wake(names)
        else:
            self._loop.call_soon_threadsafe(self._wake, names)

    def publish_all(self) -> None:
        """Wake everybody: something may have been missed. In the event loop."""
        self._wake((*self._waiting, *self._callbacks))
        self._forget()

    def quiet_since(self, generation: int, topics: Iterable[str]) -> bool:
        """Whether certainly none of the topics was published after that generation. In the event loop."""
        published = self._published
        return generation >= self._forgotten and all(published.get(topic, 0) <= generation for topic in topics)

    @contextmanager
    def subscribe(self, topics: Iterable[str]) -> Iterator[Subscription]:
        """Woken by a publication of any of the topics."""
        subscription = Subscription()
        names = set(topics)
        for topic in names:
            self._waiting[topic].add(subscription)
        try:
            yield subscription
        finally:
            for topic in names:
                self._waiting[topic].discard(subscription)
                if not self._waiting[topic]:
                    del self._waiting[topic]

    def on(self, topic: str, callback: Callable[[], None]) -> None:
        """Call back in the event loop at every publication of the topic."""
        self._callbacks[topic].append(callback)

    def close(self) -> None:
        """Wake everybody for good: long polls answer with what they have."""
        self.closed = True
        self.publish_all()

    def _wake(self, topics: Iterable[str]) -> None:
        self.generation += 1
        if len(self._published) > _REMEMBERED:
            self._forget()
        for topic in topics:
            self._published[topic] = self.generation
            for callback in self._callbacks.get(topic, ()):
                callback()
            for subscription in self._waiting.get(topic, ()):
                subscription.set()

    def _forget(self) -> None:
        self._published.clear()
        self._forgotten = self.generation
