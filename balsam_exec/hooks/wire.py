"""Frames on the sockets between pool, keeper and runner: a length, and so many bytes."""

from __future__ import annotations

import socket
import struct

_HEAD = struct.Struct("!I")
#: Frames of no bytes. From the pool: end what is running; from the keeper, once: it is ready.
END = READY = b""


def send(channel: socket.socket, body: bytes) -> None:
    channel.sendall(_HEAD.pack(len(body)) + body)


def receive(channel: socket.socket) -> bytes | None:
    """The next frame; None when the other side is gone."""
    head = _exactly(channel, _HEAD.size)
    return None if head is None else _exactly(channel, *_HEAD.unpack(head))


def _exactly(channel: socket.socket, count: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < count:
        try:
            data = channel.recv(count - len(parts))
        except ConnectionError:
            return None
        if not data:
            return None
        parts += data
    return bytes(parts)
