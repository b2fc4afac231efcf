"""Choosing jobs: the ids and options that `balsam job ls`, `rm`, `kill`, `modify`, `retry` and `wait` share."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from balsam_exec.cli import completion
from balsam_exec.cli.common import SiteOption, TagOption, confirm, of_site, tags
from balsam_exec.model.states import JobState

if TYPE_CHECKING:
    from balsam_exec.client.service import Service
    from balsam_exec.model.jobs import JobRecord

#: The most ids in one URL.
IDS = 200
_PAGE = 1000


@dataclass(frozen=True)
class Choice:
    """Jobs as a person chooses them: all that match every option. Its fields are the options of the commands."""

    ids: Annotated[list[int] | None, typer.Argument(help="Ids of jobs.", metavar="ID")] = None
    state: Annotated[
        list[JobState] | None,
        typer.Option("--state", case_sensitive=False, metavar="STATE", help="In this state; several: in any of these."),
    ] = None
    tag: TagOption = None
    site: SiteOption = None
    app: Annotated[
        str | None, typer.Option("--app", help="Of this app.", metavar="NAME", autocompletion=completion.apps)
    ] = None
    workdir: Annotated[str | None, typer.Option("--workdir", help="Whose workdir contains this.")] = None

    def filters(self, service: Service) -> dict[str, Any]:
        """Lookups of a JobQuery; empty for all jobs."""
        wanted = {
            "id": self.ids,
            "state": self.state,
            "tags": [f"{key}:{value}" for key, value in tags(self.tag).items()],
            **of_site(service, self.site),
            "app_name": [self.app] if self.app else None,
            "workdir__contains": self.workdir,
        }
        return {field: value for field, value in wanted.items() if value}

    @property
    def only_ids(self) -> list[int] | None:
        """The ids, where these alone say which jobs."""
        return self.ids if self == Choice(ids=self.ids) else None

    def some(self, service: Service) -> dict[str, Any]:
        """The filters, of which there have to be some: nothing is ever done to all jobs because options are absent."""
        if not (found := self.filters(service)):
            raise typer.BadParameter("say which jobs: ids, or options that choose them")
        return found

    def confirmed(self, service: Service, verb: str, yes: bool) -> dict[str, Any]:
        """The filters, once a person agrees to do that to all that match; ids are not asked about."""
        filters = self.some(service)
        if not self.ids:
            confirm(f"{verb} {service.count_jobs(**filters)} jobs?", yes)
        return filters


def choosing(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command of which the first parameter is a Choice the options that make one."""
    hints = get_type_hints(Choice, include_extras=True)
    named = inspect.Parameter.KEYWORD_ONLY
    options = [inspect.Parameter(f.name, named, default=f.default, annotation=hints[f.name]) for f in fields(Choice)]
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

    @functools.wraps(command)
    def chosen(**given: Any) -> None:
        choice = Choice(**{option.name: given.pop(option.name) for option in options})
        command(choice, **given)

    signature = inspect.Signature([*options, *(parameter.replace(kind=named) for parameter in own)])
    chosen.__signature__ = signature  # type: ignore[attr-defined]
    chosen.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    return chosen


def latest(service: Service, filters: dict[str, Any], limit: int | None = None) -> list[JobRecord]:
    """The `limit` jobs that were made last, in the order they were; without a limit all of them."""
    found: list[JobRecord] = []
    after: int | None = None
    while limit is None or len(found) < limit:
        size = _PAGE if limit is None else min(_PAGE, limit - len(found))
        page = service.jobs(ordering="-id", limit=size, after=after, **filters)
        found += page.results
        after = page.next
        if after is None:
            break
    return found[::-1]


def named(service: Service, ids: Iterable[int]) -> list[JobRecord]:
    """These jobs, in this order, each once. Raises NotFound, naming those that are not there."""
    from balsam_exec.model.errors import NotFound

    wanted = list(dict.fromkeys(ids))
    found = {job.id: job for some in in_parts(wanted) for job in service.jobs(id=some, limit=IDS).results}
    if absent := [one for one in wanted if one not in found]:
        raise NotFound(f"there is no job {', '.join(map(str, absent[:10]))}")
    return [found[one] for one in wanted]


def records(service: Service, choice: Choice) -> list[JobRecord]:
    """All chosen jobs. Raises NotFound where one that is named does not exist."""
    ids = choice.only_ids
    return named(service, ids) if ids else latest(service, choice.some(service))


def in_parts(ids: list[int]) -> Iterator[list[int]]:
    """As many ids at once as a URL holds."""
    return (ids[start : start + IDS] for start in range(0, len(ids), IDS))
