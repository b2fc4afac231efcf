"""Who works on which nodes of an allocation: a plan, without I/O.

A crew is the nodes that one partition of the batch job has, or that are left of it. An mpi crew has one launcher, which
places jobs over its nodes; a serial crew has one on each of its nodes, which is all that this one knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from balsam_exec.model.base import Tags
from balsam_exec.model.batch_jobs import BatchJobRecord, JobMode


@dataclass(frozen=True, slots=True)
class Crew:
    """Nodes that work in one way."""

    index: int  #: of the partition; the number of partitions for the nodes that are in none
    job_mode: JobMode
    filter_tags: Tags
    hosts: tuple[str, ...]

    def fits_one_launcher(self, here: str | None) -> bool:
        """Whether a process of the host `here` can be all of its launchers."""
        return self.job_mode == "mpi" or self.hosts == (here,)


def crews_of(batch_job: BatchJobRecord, hosts: Sequence[str]) -> list[Crew]:
    """Its partitions have the hosts in their order; what is left works as the batch job itself says."""
    made, first = [], 0
    for index, partition in enumerate(batch_job.partitions):
        taken = tuple(hosts[first : first + partition.num_nodes])
        made.append(Crew(index, partition.job_mode, partition.filter_tags, taken))
        first += partition.num_nodes
    rest = Crew(len(batch_job.partitions), batch_job.job_mode, batch_job.filter_tags, tuple(hosts[first:]))
    return [crew for crew in (*made, rest) if crew.hosts]


def crew_of(batch_job: BatchJobRecord, index: int, hosts: Sequence[str]) -> Crew:
    """The crew of this index, or the part of it that these hosts are."""
    chosen = batch_job.partitions[index] if index < len(batch_job.partitions) else batch_job
    return Crew(index, chosen.job_mode, chosen.filter_tags, tuple(hosts))
