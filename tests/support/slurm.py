"""A real Slurm for tests: one controller and several nodes on this machine, for any user, without systemd or root."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Self

from tests.support import keeper
from tests.support.processes import wait_gone, wait_until

_PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sinfo")
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

#: Fast, and without what needs root: no munge, no cgroups, no accounting. KillWait: seconds from SIGTERM to SIGKILL;
#: MessageTimeout: how long commands look for a controller that is away.
_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/%n.pid
PlugStackConfig=/dev/null
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0,sched_min_interval=0
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
ReturnToService=2
SlurmdParameters=config_overrides
SlurmctldTimeout=30
SlurmdTimeout=60
KillWait=2
MessageTimeout=5
MinJobAge=300
GresTypes=gpu
{nodes}
PartitionName=debug Nodes=ALL Default=YES MaxTime=01:00:00 DefaultTime=00:10:00 State=UP
PartitionName=long Nodes=ALL MaxTime=06:00:00 State=UP
PartitionName=urgent Nodes=ALL MaxTime=01:00:00 State=UP PriorityTier=2
"""


def missing() -> str:
    """What is not installed, as a reason to skip; "" if all is there."""
    absent = [name for name in _PROGRAMS if shutil.which(name, path=_PATH) is None]
    return f"no {', '.join(absent)}: apt-get install -y --no-install-recommends slurm-wlm munge" if absent else ""


class SlurmCluster:
    """Idle when the constructor returns. Commands find it by `environment`; leaving the context ends all of it."""

    def __init__(self, nodes: int = 4, cpus: int = 8, gpus: int = 4) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: a socket's path has at most 107 bytes
        self.nodes = [f"node{number:02}" for number in range(1, nodes + 1)]
        self.conf = self.directory / "slurm.conf"
        self.environment = {"SLURM_CONF": str(self.conf), "PATH": _PATH}
        self._write_conf(cpus, gpus)
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", keeper.__file__, str(self.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **self.environment},
            start_new_session=True,  # Ctrl-C is for pytest
        )
        try:
            self.start_controller()
            for node in self.nodes:
                self._start(["slurmd", "-D", "-N", node, "-f", str(self.conf)], f"slurmd-{node}")
            wait_until(lambda: self.node_states() == ["idle"] * nodes, 20, "Slurm's nodes to be idle")
        except BaseException:
            self.stop()
            raise

    def _write_conf(self, cpus: int, gpus: int) -> None:
        (self.directory / "state").mkdir()
        host = socket.gethostname().partition(".")[0]
        ports = _free_ports(len(self.nodes) + 1)
        shape = f"CPUs={cpus} Boards=1 SocketsPerBoard=1 CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory=64000"
        lines, gres = [], []
        for node, port in zip(self.nodes, ports[1:], strict=True):
            (self.directory / node).mkdir()
            lines.append(f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} {shape} Gres=gpu:{gpus}")
            gres.append(f"NodeName={node} Name=gpu File={self.directory}/gpu[0-{gpus - 1}]")
        for number in range(gpus):
            (self.directory / f"gpu{number}").touch()
        values = {"host": host, "port": ports[0], "user": _user(), "directory": self.directory}
        self.conf.write_text(_CONF.format(nodes="\n".join(lines), **values))
        (self.directory / "gres.conf").write_text("\n".join(gres) + "\n")
        (self.directory / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")

    def _start(self, argv: list[str], name: str) -> int:
        program = shutil.which(argv[0], path=_PATH)
        assert self._keeper.stdin
        assert self._keeper.stdout
        request = {"argv": [program, *argv[1:]], "log": str(self.directory / f"{name}.log")}
        self._keeper.stdin.write(json.dumps(request) + "\n")
        self._keeper.stdin.flush()
        return int(self._keeper.stdout.readline())

    def start_controller(self) -> None:
        """It knows the jobs it had when it was stopped."""
        self._controller = self._start(["slurmctld", "-D", "-f", str(self.conf)], "slurmctld")
        wait_until(lambda: self._run("scontrol", "ping").returncode == 0, 20, "slurmctld to answer")

    def stop_controller(self) -> None:
        os.kill(self._controller, signal.SIGTERM)
        if not wait_gone(self._controller, 20):
            raise TimeoutError("slurmctld does not end")

    def run(self, *argv: str) -> str:
        """The output of one of Slurm's commands. Raises CalledProcessError."""
        done = self._run(*argv)
        done.check_returncode()
        return done.stdout

    def _run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        environ = {**os.environ, **self.environment}
        return subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=30, check=False)

    def node_states(self) -> list[str]:
        return self._run("sinfo", "-h", "-N", "-p", "debug", "-o", "%t").stdout.split()

    def clear(self) -> None:
        """Cancel every job, bring back every node, and wait until all are idle."""
        for node in self.nodes:
            self._run("scontrol", "update", f"nodename={node}", "state=resume")
        self._run("scancel", "--me")
        try:
            wait_until(lambda: self.node_states() == ["idle"] * len(self.nodes), 15, "Slurm's nodes to be idle")
        except TimeoutError as error:
            raise TimeoutError(f"{error}: {self._run('squeue').stdout} {self._run('sinfo').stdout}") from None

    def stop(self) -> None:
        assert self._keeper.stdin
        assert self._keeper.stdout
        self._keeper.stdin.close()
        self._keeper.wait(timeout=20)
        self._keeper.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _free_ports(count: int) -> list[int]:
    """Below those that the kernel gives to connections, as a controller must get its own again when it is restarted;
    and not where another process begins to look."""
    found: list[int] = []
    port = 10_000 + os.getpid() * 2 * count % 20_000
    while len(found) < count:
        port += 1
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        found.append(port)
    return found


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
