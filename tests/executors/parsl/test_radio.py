"""The radio of the executor: what is sent arrives, each message once."""

from __future__ import annotations

import pickle
from pathlib import Path
from queue import Queue
from typing import Any

from parsl.monitoring.radios.filesystem import FilesystemRadio

from balsam_exec.executors.parsl.radio import DirectoryRadio


def test_messages_of_two_executors_arrive_once(tmp_path: Path) -> None:
    messages: Any = Queue()
    radios = DirectoryRadio(), DirectoryRadio()
    receivers = [radio.create_receiver(run_dir=str(tmp_path), resource_msgs=messages) for radio in radios]
    at_worker = [pickle.loads(pickle.dumps(radio)) for radio in radios]
    assert [type(radio) for radio in at_worker] == [FilesystemRadio, FilesystemRadio]
    for number in range(6):
        at_worker[number % 2].create_sender().send(("message", number))
    arrived = [messages.get(timeout=30) for _ in range(6)]  # while it runs
    at_worker[0].create_sender().send(("message", 6))
    for receiver in receivers:
        receiver.shutdown()
    assert sorted([*arrived, *messages.queue]) == [("message", number) for number in range(7)]


def test_a_broken_message_does_not_keep_others_back(tmp_path: Path) -> None:
    messages: Any = Queue()
    radio = DirectoryRadio()
    receiver = radio.create_receiver(run_dir=str(tmp_path), resource_msgs=messages)
    (Path(radio.run_dir) / "monitor-fs-radio" / "new" / "0").write_bytes(b"\x80")
    radio.create_sender().send("good")
    receiver.shutdown()
    assert list(messages.queue) == ["good"]
