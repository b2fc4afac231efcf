"""An MPI program that sleeps on all its ranks, and then says what it did: `mpi_sleep.py SECONDS`, in a workdir."""

import os
import sys
import time

from mpi4py import MPI

started = time.time()
world = MPI.COMM_WORLD
nodes = world.gather(os.environ["SLURMD_NODENAME"])
time.sleep(float(sys.argv[1]))
world.Barrier()
if nodes is not None:  # rank 0
    with open("completed", "a") as file:
        file.write(f"{os.environ['BALSAM_JOB_ID']} {started} {time.time()} {'+'.join(sorted(nodes))} -\n")
