"""What a job finds where it runs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from balsam_exec.platform.cpus import Core


@dataclass(frozen=True, slots=True)
class Surroundings:
    workdir: str
    environment: Mapping[str, str]
    binding: tuple[Core, ...] = ()  #: the CPUs of each of its ranks on the node; empty: any
    preamble: str = ""  #: lines for the shell that starts it; empty: there need not be one
    #: The command that has its ranks end, on whatever node; none: they are told by what started them here.
    end: Sequence[str] = ()

    def path(self, name: str) -> str:
        """Of a file of the workdir."""
        return os.path.join(self.workdir, name)

    @property
    def cpus(self) -> Core:
        """Those of all its ranks; empty: any."""
        return tuple(cpu for cpus in self.binding for cpu in cpus)


def in_shell(preamble: str, words: list[str], *, searched: bool = False) -> list[str]:
    """`words` as they are to be run after the lines of a preamble, if there are any: by a shell, which they replace.

    With `searched` the program is the one of its name on the PATH that the preamble leaves, if there is one.
    """
    if not preamble:
        return words
    program = '"$(type -P "${1##*/}" || echo "$1")"' if searched else '"$1"'
    return ["bash", "-c", f'{preamble}\nexec {program} "${{@:2}}"', "bash", *words]
