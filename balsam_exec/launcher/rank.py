"""One rank of a Python app that runs on several, started by an MPI launcher.

    PYTHON rank.py DIRECTORY RANKS LIMIT CODEC_FILE

Like worker.py, whose calls it makes: started by its path, standard library only, Python 3.8 and up. DIRECTORY, which
all ranks see, has the file `call`, a pickled (PAYLOAD, ARGUMENTS). Each answer is left there in a file, framed as
worker.py frames it: what rank 0 returned as `value`; the first failure of any rank as `failure`, a link to
`failure.RANK`. A rank that fails kills itself: whatever the others do, each MPI launcher then ends them.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from balsam_exec.launcher import worker
else:
    _spec = importlib.util.spec_from_file_location(
        "_balsam_worker", os.path.join(os.path.dirname(os.path.abspath(__file__)), "worker.py")
    )
    worker = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(worker)

#: The variables by which launchers tell a process its rank, and the number of ranks.
_TOLD_BY = (
    ("PMI_RANK", "PMI_SIZE"),  # MPICH and its kin
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),  # Open MPI
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),  # srun
)


def rank_of(environ: Mapping[str, str], ranks: int) -> int | None:
    """Which one this process is; None if no launcher of so many ranks says so."""
    if ranks == 1:
        return 0
    for rank, size in _TOLD_BY:
        if environ.get(size) == str(ranks) and rank in environ:
            return int(environ[rank])
    return None


def make_call(directory: str, rank: int | None, ranks: int, limit: int, codec: Any) -> bytes:
    """This rank's answer."""
    if rank is None:
        names = ", ".join(name for name, _ in _TOLD_BY)
        return worker.answer(
            worker.CANNOT_RUN, f"the MPI launcher does not say which of {ranks} ranks this is ({names})"
        )
    with open(os.path.join(directory, "call"), "rb") as file:
        payload, arguments = pickle.load(file)
    frame = worker.run(worker.App(codec, payload, False), arguments, limit, keep_value=rank == 0)
    size = _world_size()
    if _succeeded(frame) and size not in (None, ranks):
        why = (
            f"mpi4py of {sys.executable} is for another MPI than that which started {ranks} ranks: its world has {size}"
        )
        return worker.answer(worker.CANNOT_RUN, why)
    return frame


def _succeeded(frame: bytes) -> bool:
    return bool(worker.ANSWER.unpack_from(frame)[1] == worker.VALUE)


def _world_size() -> int | None:
    """As mpi4py has it; None where the app does not use it."""
    mpi: Any = sys.modules.get("mpi4py.MPI")
    if mpi is None or not mpi.Is_initialized() or mpi.Is_finalized():
        return None
    return int(mpi.COMM_WORLD.Get_size())


def _leave(directory: str, name: str, frame: bytes) -> None:
    with open(os.path.join(directory, name), "wb") as file:
        file.write(frame)


def _fail(directory: str, rank: int | None, frame: bytes) -> None:
    """Does not return."""
    name = "failure.unknown" if rank is None else f"failure.{rank}"
    try:
        _leave(directory, name, frame)
        with suppress(FileExistsError):  # another one was first
            os.symlink(name, os.path.join(directory, "failure"))
    except OSError:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, ValueError, OSError):  # None, closed, or the disk is full
                stream.flush()
        # An exit code would not do: MPICH waits for the others where this one has not initialized MPI.
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    directory, ranks, limit, codec_file = sys.argv[1:5]
    rank = rank_of(os.environ, int(ranks))
    try:
        codec = worker.prepare(codec_file)
        frame = make_call(directory, rank, int(ranks), int(limit), codec)
        if rank == 0 and _succeeded(frame):
            _leave(directory, "value", frame)
    except BaseException:  # noqa: BLE001 no failure of ours may leave the other ranks waiting
        frame = worker.answer(worker.BROKEN, traceback.format_exc())
    if not _succeeded(frame):
        _fail(directory, rank, frame)
    # The interpreter ends as it always does: that is when mpi4py finalizes MPI.


if __name__ == "__main__":
    main()
