"""What the nodes of an allocation offer to jobs. Here: the one node this process runs on."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from balsam_exec.platform.cpus import Core, cores_of
from balsam_exec.platform.gpus import is_amd, visible_gpus


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """One node: its cores, and the ids of its GPUs as CUDA_VISIBLE_DEVICES and its kin name them."""

    name: str
    cores: int
    gpus: tuple[str, ...] = ()
    cpus: tuple[Core, ...] = ()  #: what each core is for the kernel; empty: there are not so many cores in truth
    amd: bool = False  #: whose GPUs they are


def local_node(
    cores: int | None = None,
    gpus: int | None = None,
    environ: Mapping[str, str] | None = None,
    dev: Path = Path("/dev"),
) -> NodeSpec:
    """This machine, as far as this process may use it; `cores` and `gpus` (numbers, from the site's settings) override
    what is found: the cores of the CPU affinity, the GPUs that the environment names or else /dev has."""
    found = visible_gpus(os.environ if environ is None else environ, dev)
    if gpus is not None:
        found = found[:gpus] if len(found) >= gpus else tuple(map(str, range(gpus)))
    cpus = _first(cores, cores_of(os.sched_getaffinity(0)))
    return NodeSpec(socket.gethostname(), cores or len(cpus), found, cpus, is_amd(dev))


def _first(count: int | None, cores: tuple[Core, ...]) -> tuple[Core, ...]:
    """So many of these cores. Where they are too few, their hardware threads count as cores; where those are too few,
    nobody knows which cores are meant."""
    if count is None or count <= len(cores):
        return cores[:count]
    threads = tuple((cpu,) for core in cores for cpu in core)
    return threads[:count] if count <= len(threads) else ()
