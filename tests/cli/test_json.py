"""`--json`: everywhere where something is listed, shown or changed, with the names of the wire."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from balsam_exec.cli.app import app
from balsam_exec.model.apps import AppRecord
from balsam_exec.model.auth import NewToken, TokenRecord
from balsam_exec.model.base import Count
from balsam_exec.model.batch_jobs import BatchJobRecord
from balsam_exec.model.events import EventRecord
from balsam_exec.model.explain import Explanation
from balsam_exec.model.jobs import JobCreated, JobRecord, Killed
from balsam_exec.model.sites import SiteRecord
from tests.cli.conftest import Balsam
from tests.cli.test_jobs import create

#: Those that print what is not ours to shape, or run until they are told to end.
WITHOUT = {"balsam job logs", "balsam server run", "balsam server create-user"}


def commands(command: Any, context: Any) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "list_commands"):
        yield context.command_path, command
        return
    for name in command.list_commands(context):
        child = command.get_command(context, name)
        yield from commands(child, command.context_class(child, context, info_name=name))


def test_every_command_has_it() -> None:
    root = typer.main.get_command(app)
    found = dict(commands(root, root.context_class(root, info_name="balsam")))
    without = {path for path, command in found.items() if not any("--json" in p.opts for p in command.params)}
    assert without == WITHOUT
    assert all((command.help or "").strip() for command in found.values())


def test_what_is_printed_is_what_the_service_answers(balsam: Balsam, hello: AppRecord) -> None:
    made = balsam.json("job", "create", "--app", "Hello", "-w", "w", "-p", "name=x")
    job = JobCreated.model_validate(made, extra="forbid").id
    for path in (["job", "ls"], ["app", "ls"], ["site", "ls"], ["token", "ls"]):
        kind = {"job": JobRecord, "app": AppRecord, "site": SiteRecord, "token": TokenRecord}[path[0]]
        [record, *_] = balsam.json(*path)
        kind.model_validate(record, extra="forbid")
        assert set(kind.model_fields) - set(record) <= {"payload", "arguments"}
    assert JobRecord.model_validate(balsam.json("job", "show", job)) == balsam.service.job(job)
    [told] = balsam.json("job", "history", job)
    EventRecord.model_validate(told["history"][0], extra="forbid")
    Explanation.model_validate(balsam.json("job", "explain", job), extra="forbid")
    allocation = BatchJobRecord.model_validate(balsam.json("queue", "submit"), extra="forbid")
    assert [BatchJobRecord.model_validate(item).id for item in balsam.json("queue", "ls")] == [allocation.id]
    assert balsam.json("queue", "rm", allocation.id)[0]["state"] == "pending_deletion"
    assert Killed.model_validate(balsam.json("job", "kill", job), extra="forbid").killed == [job]
    assert Count.model_validate(balsam.json("job", "rm", job), extra="forbid").count == 1
    assert AppRecord.model_validate(balsam.json("app", "show", "Hello")) == hello
    assert balsam.json("app", "rm", "Hello") == {"count": 1}
    token = NewToken.model_validate(balsam.json("token", "create", "laptop"), extra="forbid")
    assert balsam.json("token", "revoke", token.id) == {"count": 1}


def test_site_init(balsam: Balsam, tmp_path: Path) -> None:
    site = SiteRecord.model_validate(balsam.json("site", "init", tmp_path / "s", "--name", "mine"), extra="forbid")
    assert balsam.service.site(site.id).name == "mine"


def test_nothing_is_an_empty_list(balsam: Balsam, hello: AppRecord) -> None:
    assert balsam.json("job", "ls") == balsam.json("queue", "ls") == []
    assert balsam.json("job", "ls", "--by-state") == {}
    assert create(balsam, "w") == balsam.json("job", "ls")[0]["id"]
