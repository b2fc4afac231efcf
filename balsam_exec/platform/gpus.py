"""The GPUs of a node, and the variables by which a process sees only some of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

#: Of NVIDIA, AMD and Intel. None of them minds the others', but for HIP (see `gpu_environment`).
VARIABLES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")


def visible_gpus(environ: Mapping[str, str], dev: Path) -> tuple[str, ...]:
    """The ids of those that a process with this environment sees: those of the first variable that is set, else those
    in /dev, where NVIDIA's are numbered."""
    for name in ("ROCR_VISIBLE_DEVICES", *VARIABLES) if is_amd(dev) else VARIABLES:
        if (visible := environ.get(name)) is not None:
            return tuple(item.strip() for item in visible.split(",") if item.strip() not in ("", "-1", "NoDevFiles"))
    return tuple(map(str, _nvidia(dev)))


def is_amd(dev: Path) -> bool:
    """Whether the GPUs here are AMD's."""
    return (dev / "kfd").exists() and not _nvidia(dev)


def gpu_environment(ids: Sequence[str], amd: bool = False) -> dict[str, str]:
    """What shows a process these GPUs and no others, whoever made them.

    AMD's HIP obeys CUDA_VISIBLE_DEVICES, too, but counts among those that ROCR_VISIBLE_DEVICES has left. Whether
    Intel's driver takes an empty mask for "none" or for "all" was never tried.
    """
    environment = dict.fromkeys(VARIABLES, ",".join(ids))
    if amd:
        among = ",".join(map(str, range(len(ids))))
        environment |= {"CUDA_VISIBLE_DEVICES": among, "HIP_VISIBLE_DEVICES": among}
    return environment


def _nvidia(dev: Path) -> list[int]:
    return sorted(int(m.group(1)) for path in dev.glob("nvidia*") if (m := re.fullmatch(r"nvidia(\d+)", path.name)))
