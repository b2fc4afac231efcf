"""`python -m balsam_exec.launcher --site DIR --batch-job ID`: run the site's jobs in this allocation."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from balsam_exec.launcher.guardian import guarded


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 when all went as it should, 1 when it could not start or lost its session."""
    parser = argparse.ArgumentParser(prog="python -m balsam_exec.launcher", description=__doc__)
    parser.add_argument("--site", type=Path, required=True, help="the site's directory")
    parser.add_argument("--batch-job", type=int, required=True, help="the id of the batch job that is this allocation")
    arguments = parser.parse_args(argv)

    def launch(guardians: Sequence[int]) -> int:
        # Imported here: the guardians need nothing of it, and stay small.
        from balsam_exec.launcher.launch import launch

        return launch(arguments.site, arguments.batch_job, guardians)

    return guarded(launch)


if __name__ == "__main__":
    sys.exit(main())
