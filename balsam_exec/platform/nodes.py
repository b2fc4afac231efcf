"""What the nodes of an allocation offer to jobs. Here: the one node this process runs on."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """One node: its cores, and the ids of its GPUs as CUDA_VISIBLE_DEVICES names them."""

    name: str
    cores: int
    gpus: tuple[str, ...] = ()


def local_node(
    cores: int | None = None,
    gpus: int | None = None,
    environ: Mapping[str, str] | None = None,
    dev: Path = Path("/dev"),
) -> NodeSpec:
    """This machine, as far as this process may use it; `cores` and `gpus` (numbers, from the site's settings) override
    what is found: the cores of the CPU affinity, the GPUs of CUDA_VISIBLE_DEVICES or else of /dev."""
    found = _visible_gpus(os.environ if environ is None else environ, dev)
    if gpus is not None:
        found = found[:gpus] if len(found) >= gpus else tuple(map(str, range(gpus)))
    return NodeSpec(socket.gethostname(), cores or len(os.sched_getaffinity(0)), found)


def _visible_gpus(environ: Mapping[str, str], dev: Path) -> tuple[str, ...]:
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(name.strip() for name in visible.split(",") if name.strip() not in ("", "-1", "NoDevFiles"))
    numbers = sorted(int(m.group(1)) for path in dev.glob("nvidia*") if (m := re.fullmatch(r"nvidia(\d+)", path.name)))
    return tuple(map(str, numbers))
