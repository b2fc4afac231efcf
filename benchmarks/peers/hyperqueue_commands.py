"""`true` in a directory of its own with an output file, through HyperQueue's LocalCluster, 2 cores. Prints JSON.

Usage: hyperqueue_commands.py TASKS FILES, with FILES 1 (stdout alone) or 2 (its default: stdout and stderr)
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from hyperqueue import Client, Job, LocalCluster
from hyperqueue.cluster import WorkerConfig


def run(client: Client, directory: Path, tasks: int, files: int) -> float:
    """Seconds from submission to the start of the last task. (The wait polls once a second: too coarse a clock.)"""
    job = Job()
    outputs = [directory / str(n) / "job.out" for n in range(tasks)]
    for output in outputs:
        job.program(
            ["true"], cwd=output.parent, stdout=output, stderr=output.with_name("job.err") if files == 2 else None
        )
    start = time.time()
    client.wait_for_jobs([client.submit(job)])
    return max(output.stat().st_mtime for output in outputs) - start


def main(tasks: int, files: int) -> None:
    with tempfile.TemporaryDirectory() as name, LocalCluster() as cluster:
        directory = Path(name)
        cluster.start_worker(WorkerConfig(cores=2))
        client = cluster.client()
        run(client, directory / "warm-up", 20, files)
        seconds = run(client, directory / "measured", tasks, files)
    print(json.dumps({"version": version("hyperqueue"), "rate": tasks / seconds}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
