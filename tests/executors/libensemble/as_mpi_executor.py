"""Run a script of libEnsemble with its MPIExecutor replaced by ours: python as_mpi_executor.py SCRIPT ARGUMENTS"""

from __future__ import annotations

import os
import runpy
import sys
from typing import Any

import libensemble.executors
import libensemble.executors.mpi_executor

from balsam_exec.executors import BalsamExecutor


class Ours(BalsamExecutor):
    """With the constructor of MPIExecutor."""

    def __init__(self, custom_info: dict[str, Any] | None = None) -> None:
        super().__init__("strangers")


if __name__ == "__main__":
    libensemble.executors.MPIExecutor = libensemble.executors.mpi_executor.MPIExecutor = Ours
    del sys.argv[0]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
