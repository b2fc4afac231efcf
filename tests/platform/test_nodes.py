"""What a launcher finds on its node."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from balsam_exec.platform import nodes
from balsam_exec.platform.gpus import gpu_environment
from balsam_exec.platform.nodes import local_node


@pytest.fixture
def dev(tmp_path: Path) -> Path:
    """A /dev with twelve GPUs and what else the driver puts there."""
    for name in [*(f"nvidia{i}" for i in range(12)), "nvidiactl", "nvidia-uvm"]:
        (tmp_path / name).touch()
    return tmp_path


def test_cores_are_those_we_may_use() -> None:
    node = local_node()
    assert node.cores == len(node.cpus) <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("cores", "cpus"),
    [
        (None, ((0, 2), (1, 3))),
        (1, ((0, 2),)),
        (2, ((0, 2), (1, 3))),
        (3, ((0,), (2,), (1,))),  # hardware threads count as cores
        (4, ((0,), (2,), (1,), (3,))),
        (5, ()),  # there are not so many
    ],
)
def test_which_cores_the_settings_mean(
    cores: int | None, cpus: tuple[tuple[int, ...], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "cores_of", lambda allowed: ((0, 2), (1, 3)))
    node = local_node(cores)
    assert node.cores == (cores or 2)
    assert node.cpus == cpus


@pytest.mark.parametrize(
    ("environ", "gpus"),
    [
        ({"ROCR_VISIBLE_DEVICES": "2,3"}, ("2", "3")),
        ({"ROCR_VISIBLE_DEVICES": "2,3", "CUDA_VISIBLE_DEVICES": "0,1"}, ("2", "3")),
        ({"ZE_AFFINITY_MASK": "0.0,0.1"}, ("0.0", "0.1")),
        ({}, ()),
    ],
)
def test_gpus_of_amd(tmp_path: Path, environ: dict[str, str], gpus: tuple[str, ...]) -> None:
    (tmp_path / "kfd").touch()
    node = local_node(environ=environ, dev=tmp_path)
    assert (node.gpus, node.amd) == (gpus, True)


def test_what_shows_a_process_its_gpus() -> None:
    assert gpu_environment(["3", "5"]) == {
        "CUDA_VISIBLE_DEVICES": "3,5",
        "ROCR_VISIBLE_DEVICES": "3,5",
        "ZE_AFFINITY_MASK": "3,5",
    }
    hip = gpu_environment(["3", "5"], amd=True)
    assert (hip["ROCR_VISIBLE_DEVICES"], hip["CUDA_VISIBLE_DEVICES"]) == ("3,5", "0,1")
    assert set(gpu_environment([]).values()) == {""}


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
