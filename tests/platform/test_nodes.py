"""What a launcher finds on its node."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from balsam_exec.platform.nodes import local_node


@pytest.fixture
def dev(tmp_path: Path) -> Path:
    """A /dev with twelve GPUs and what else the driver puts there."""
    for name in [*(f"nvidia{i}" for i in range(12)), "nvidiactl", "nvidia-uvm"]:
        (tmp_path / name).touch()
    return tmp_path


def test_cores_are_those_we_may_use() -> None:
    assert local_node().cores == len(os.sched_getaffinity(0))
    assert local_node(cores=64).cores == 64


@pytest.mark.parametrize(
    ("visible", "override", "gpus"),
    [
        (None, None, tuple(map(str, range(12)))),
        (None, 2, ("0", "1")),
        (None, 14, tuple(map(str, range(14)))),
        (None, 0, ()),
        ("3,5", None, ("3", "5")),
        ("3,5", 1, ("3",)),
        ("GPU-abc, GPU-def", None, ("GPU-abc", "GPU-def")),
        ("", None, ()),
        ("-1", None, ()),
        ("NoDevFiles", None, ()),
    ],
)
def test_gpus(dev: Path, visible: str | None, override: int | None, gpus: tuple[str, ...]) -> None:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert local_node(gpus=override, environ=environ, dev=dev).gpus == gpus


def test_a_node_without_gpus(tmp_path: Path) -> None:
    assert local_node(environ={}, dev=tmp_path).gpus == ()
