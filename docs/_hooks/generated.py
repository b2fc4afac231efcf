"""MkDocs hook: replaces `<!-- generated: NAME -->` in a page by a table made from the code."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import typer
from pydantic import BaseModel

sys.path.insert(0, str(Path(__file__).parents[2]))  # for the benchmarks, which are not installed

MARKER = re.compile(r"<!-- generated: ([\w-]+) -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    return MARKER.sub(lambda match: GENERATORS[match[1]](), markdown)


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [list(head)]
    lines.append(["---"] * len(lines[0]))
    lines += [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def comments(owner: type | ModuleType) -> dict[str, str]:
    """name -> its `#:` comment, at the end of its line or on the lines above it."""
    found: dict[str, str] = {}
    above: list[str] = []
    for line in map(str.strip, inspect.getsource(owner).splitlines()):
        if line.startswith("#:") or (above and line.startswith("#")):
            above.append(line.lstrip("#: "))
            continue
        if match := re.match(r"(\w+)(?:: [^=]+)? = ", line):
            found[match[1]] = line.partition("#: ")[2] or " ".join(above)
        above = []
    return found


def states() -> str:
    from balsam_exec.model.states import RUNNABLE, TERMINAL, JobState

    said = comments(JobState)
    kind = {**dict.fromkeys(RUNNABLE, "runnable"), **dict.fromkeys(TERMINAL, "ended")}
    return table(["state", "", "means"], ([f"`{s}`", kind.get(s, ""), said[s.name]] for s in JobState))


def transitions() -> str:
    from balsam_exec.model.states import TRANSITIONS, JobState

    order = list(JobState)
    hops = sorted(TRANSITIONS.items(), key=lambda hop: (order.index(hop[0][0]), order.index(hop[0][1])))
    return table(["from", "to", "by"], ([f"`{f}`", f"`{t}`", ", ".join(sorted(who))] for (f, t), who in hops))


def batch_job_states() -> str:
    from balsam_exec.model.states import BATCH_JOB_TRANSITIONS, BatchJobState

    said = comments(BatchJobState)
    following = {
        s: ", ".join(f"`{t}`" for t in BatchJobState if (s, t) in BATCH_JOB_TRANSITIONS) for s in BatchJobState
    }
    rows = ([f"`{s}`", said[s.name], following[s]] for s in BatchJobState)
    return table(["state", "means", "may be followed by"], rows)


def errors() -> str:
    from balsam_exec.model.errors import BalsamError

    def walk(kind: type[BalsamError], depth: int) -> Iterator[list[object]]:
        name = "&nbsp;" * 4 * depth + f"[`{kind.__name__}`][balsam_exec.model.errors.{kind.__name__}]"
        yield [name, f"`{kind.code}`", kind.status, "yes" if kind.transient else ""]
        for child in kind.__subclasses__():
            if child.__module__ == BalsamError.__module__:
                yield from walk(child, depth + 1)

    return table(["error", "code", "HTTP status", "transient"], walk(BalsamError, 0))


def causes() -> str:
    from balsam_exec.model.explain import Cause

    said = comments(Cause)
    return table(["code", "means"], ([f"`{cause}`", said[cause.name]] for cause in Cause))


def wait_exit_codes() -> str:
    from balsam_exec.cli import wait

    said = {name: text for name, text in comments(wait).items() if name.isupper()}
    return table(["exit code", "means"], ([f"`{getattr(wait, name)}`", text] for name, text in said.items()))


def cli() -> str:
    from balsam_exec.cli.app import app

    def walk(command: Any, context: Any) -> Iterator[str]:
        if hasattr(command, "list_commands"):
            for name in command.list_commands(context):
                child = command.get_command(context, name)
                if not child.hidden:
                    yield from walk(child, command.context_class(child, context, info_name=name))
            return
        usage = " ".join(command.collect_usage_pieces(context))
        yield f"## `{context.command_path}`\n\n```text\n{context.command_path} {usage}\n```\n"
        yield inspect.cleandoc(command.help or "") + "\n"
        records = [r for p in command.get_params(context) if (r := p.get_help_record(context)) and "--help" not in r[0]]
        if records:
            rows = ([f"`{option}`", text.replace("[", "(").replace("]", ")")] for option, text in records)
            yield table(["option", "means"], rows) + "\n"

    # Typer may bring its own copy of Click, so neither module is named here.
    command = typer.main.get_command(app)
    return "\n".join(walk(command, command.context_class(command, info_name="balsam")))


def settings(model: type[BaseModel]) -> str:
    return table(["setting", "type", "default", "means"], setting_rows(model))


def setting_rows(model: type[BaseModel], section: str = "") -> Iterator[list[object]]:
    said, kinds = {}, {}
    for kind in reversed(model.__mro__[: model.__mro__.index(BaseModel)]):
        said |= comments(kind)
        kinds |= inspect.get_annotations(kind)
    for name, field in model.model_fields.items():
        if isinstance(field.default, BaseModel):
            yield from setting_rows(type(field.default), f"{section}{name}.")
            continue
        default = "required" if field.is_required() else f"`{field.default}`"
        yield [f"`{section}{name}`", f"`{kinds[name]}`", default, said.get(name, "")]


def site_settings() -> str:
    from balsam_exec.platform.settings import SiteSettings

    return settings(SiteSettings)


def platforms() -> str:
    from balsam_exec.platform.platforms import names, platform

    def row(name: str) -> list[object]:
        found = platform(name)
        site = found.settings_of(name)
        queues = ", ".join(f"`{queue}`" for queue in site.allowed_queues)
        shape = ["as found" if count is None else count for count in (site.cores, site.gpus)]
        links = " ".join(f"[{number}]({url})" for number, url in enumerate(found.sources, 1))
        return [f"`{name}`", found.title, site.scheduler, *shape, queues, links]

    columns = ["platform", "is", "scheduler", "cores", "GPUs", "queues", "documentation"]
    return table(columns, map(row, names()))


def server_settings() -> str:
    from balsam_exec.server.config import ServerSettings

    return settings(ServerSettings)


def limits() -> str:
    from balsam_exec.model import base, files, jobs

    def size(value: int) -> str:
        if value % 2**10:
            return f"{value:,}"
        return f"{value // 2**20} MiB" if value % 2**20 == 0 else f"{value // 2**10} KiB"

    said = {**comments(base), **comments(jobs), **comments(files)}
    found = {**vars(base), **vars(jobs), **vars(files)}
    rows = (
        [said[name], size(found[name])] for name in said if name.startswith("MAX_") and isinstance(found[name], int)
    )
    return table(["what", "limit"], rows)


def routes() -> str:
    from balsam_exec.server.app import create_app
    from balsam_exec.server.config import ServerSettings

    document = create_app(ServerSettings(database_url="sqlite:///never-opened.db")).openapi()
    rows = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            rows.append([f"`{method.upper()} {path}`", operation.get("description") or operation.get("summary", "")])
    return table(["route", "does"], rows)


def benchmarks() -> str:
    """The tables of benchmarks/results, which `make bench` writes."""
    from benchmarks.__main__ import NAMES, RESULTS
    from benchmarks.harness import Report

    reports = [Report.load(RESULTS / f"{name}.json") for name in NAMES]
    return "\n\n".join(f"{report.markdown()}\n\n{report.where()}" for report in reports)


GENERATORS: dict[str, Callable[[], str]] = {
    "states": states,
    "transitions": transitions,
    "batch-job-states": batch_job_states,
    "errors": errors,
    "causes": causes,
    "wait-exit-codes": wait_exit_codes,
    "cli": cli,
    "site-settings": site_settings,
    "platforms": platforms,
    "server-settings": server_settings,
    "limits": limits,
    "routes": routes,
    "benchmarks": benchmarks,
}
