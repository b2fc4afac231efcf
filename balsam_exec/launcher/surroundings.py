"""What a job finds where it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from balsam_exec.platform.cpus import Core


@dataclass(frozen=True, slots=True)
class Surroundings:
    workdir: Path
    environment: Mapping[str, str]
    binding: tuple[Core, ...] = ()  #: the CPUs of each of its ranks on the node; empty: any

    @property
    def cpus(self) -> Core:
        """Those of all its ranks; empty: any."""
        return tuple(cpu for cpus in self.binding for cpu in cpus)
