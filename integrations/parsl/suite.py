"""Run Parsl's own test suite on BalsamParslExecutor. `make test-parsl` makes the environment that it needs.

Arguments go to pytest; for instance `-k walltime`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import parsl.tests

HERE = Path(__file__).parent
TESTS = Path(parsl.tests.__file__).parent

#: Tests that are left out: README.md gives the reasons.
LEFT_OUT = ["test_error_handling/test_resource_spec.py::test_resource"]


def markers() -> str:
    """Those that this machine can do."""
    out = ["not cleannet"] if not os.environ.get("PARSL_SUITE_NETWORK") else []
    out += ["not unix_filesystem_permissions_required"] if os.geteuid() == 0 else []
    return " and ".join(out)


def main(arguments: list[str]) -> int:
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, f"--rootdir={TESTS}", TESTS, "-m", markers()]
    command += [f"--deselect={name}" for name in LEFT_OUT]
    command += ["--config", HERE / "suite_config.py", "-p", "no:cacheprovider", "--timeout=120", "-q", *arguments]
    with tempfile.TemporaryDirectory(prefix="parsl-suite-") as directory:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("BALSAM_")},
            "BALSAM_HOME": f"{directory}/balsam",  # nobody's: the executor starts a deployment of its own
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        return subprocess.run(command, cwd=directory, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
