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
    crew = parser.add_argument_group("for the launchers that a launcher starts")
    crew.add_argument("--crew", type=int, help="run the jobs of this crew of the batch job only")
    crew.add_argument("--hosts", default="", help="its nodes, a,b,c; this one if none are named")
    crew.add_argument("--ends-at", type=float, help="when the allocation is taken away, in Unix time")
    crew.add_argument("--until-eof", action="store_true", help="end with the standard input")
    arguments = parser.parse_args(argv)

    def launch(guardians: Sequence[int]) -> int:
        # Imported here: the guardians need nothing of it, and stay small.
        from balsam_exec.launcher.launch import Orders, launch

        orders = Orders(
            site=arguments.site,
            batch_job_id=arguments.batch_job,
            crew=arguments.crew,
            hosts=tuple(filter(None, arguments.hosts.split(","))),
            ends_at=arguments.ends_at,
            until_eof=arguments.until_eof,
        )
        return launch(orders, guardians)

    return guarded(launch)


if __name__ == "__main__":
    sys.exit(main())
