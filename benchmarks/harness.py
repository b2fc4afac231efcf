"""The small harness of all benchmarks: sides measured in turn, medians, a table, JSON.

Machines drift, so only ratios within one run mean anything: the sides of a comparison take turns, round by round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Self

ROOT = Path(__file__).parent.parent
PEERS_PYTHON = ROOT / ".venv-peers/bin/python"


@dataclass(frozen=True)
class Row:
    """One measured side: the median of its rounds, all of them, and whether it met what was asked of it."""

    name: str
    value: float
    unit: str
    rounds: list[float]
    goal: str = ""
    met: bool | None = None


@dataclass
class Report:
    """What one benchmark found."""

    title: str
    rows: list[Row] = field(default_factory=list)
    machine: dict[str, str] = field(default_factory=lambda: machine())

    def add(self, name: str, rounds: Sequence[float], unit: str, goal: str = "", met: bool | None = None) -> float:
        value = median(rounds)
        self.rows.append(Row(name, value, unit, list(rounds), goal, met))
        return value

    @classmethod
    def load(cls, path: Path) -> Self:
        found = json.loads(path.read_text())
        return cls(found["title"], [Row(**row) for row in found["rows"]], found["machine"])

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    def where(self) -> str:
        return ", ".join(f"{key}: {value}" for key, value in self.machine.items())

    def markdown(self) -> str:
        lines = [f"## {self.title}", "", "| what | median | range | goal |", "|---|---|---|---|"]
        for row in self.rows:
            spread = f"{show(min(row.rounds))} - {show(max(row.rounds))}" if len(row.rounds) > 1 else ""
            verdict = {None: "", True: ": met", False: ": missed"}[row.met]
            lines.append(f"| {row.name} | {show(row.value)} {row.unit} | {spread} | {row.goal}{verdict} |")
        return "\n".join(lines)


def show(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def machine() -> dict[str, str]:
    cpu = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), "unknown")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": f"{os.cpu_count()} x {cpu}",
        "load when it began": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        "balsam-exec": version("balsam-exec"),
    }


def _cpuinfo() -> list[str]:
    return Path("/proc/cpuinfo").read_text().splitlines()


def take_turns(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure every side `rounds` times, in turn, in changing order."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides)
    for number in range(rounds):
        for name in order:
            value = sides[name]()
            found[name].append(value)
            print(f"  round {number + 1}/{rounds}  {name}: {show(value)}", file=sys.stderr, flush=True)
        order.reverse()
    return found


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Round by round, so that a drift of the machine hits both sides."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def run_peer(script: str, *arguments: object, python: str | Path = PEERS_PYTHON) -> dict[str, Any]:
    """Run benchmarks/peers/SCRIPT.py in the peers' own environment; it prints one JSON object as its last line."""
    if not Path(python).exists():
        raise SystemExit("the peers are not installed: run `make bench-peers` first")
    command = [python, ROOT / "benchmarks/peers" / f"{script}.py", *map(str, arguments)]
    environment = {**os.environ, "PATH": f"{Path(python).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{script} failed:\n{done.stderr}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main(measure: Callable[[argparse.Namespace], Report], **options: int) -> None:
    """The command line of a benchmark: --rounds, its own whole-number options, and --json FILE."""
    parser = argparse.ArgumentParser(description=sys.modules[measure.__module__].__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often each side is measured")
    parser.add_argument("--json", type=Path, help="write the report here too")
    for name, default in options.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=f"default: {default}")
    arguments = parser.parse_args()
    report = measure(arguments)
    print(report.markdown())
    if arguments.json:
        report.save(arguments.json)
