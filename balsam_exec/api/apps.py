"""Apps: the classes people write, and what is registered of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar

from balsam_exec.api.binding import Client, default_client
from balsam_exec.api.queryset import Objects, QuerySet
from balsam_exec.api.resource import Field, Resource, Routes
from balsam_exec.apps import definition
from balsam_exec.client.service import Service
from balsam_exec.model.apps import AppPatch, AppRecord, AppSpec
from balsam_exec.model.errors import InvalidRequest, ParameterError
from balsam_exec.model.queries import AppQuery

if TYPE_CHECKING:
    from balsam_exec.api.jobs import Job


class _AppId:
    """The id under which a class is registered; None before `sync()`."""

    def __get__(self, obj: object, owner: type[ApplicationDefinition]) -> int | None:
        record = owner._client().synced(owner)
        return None if record is None else record.id


class ApplicationDefinition(definition.ApplicationDefinition):
    """An app, declared as a class (seed 001 "Writing ApplicationDefinitions"):

        class Sleeper(ApplicationDefinition):
            site = "theta-gpu"  # a site's name, id or Site object
            command_template = "sleep {{ sleeptime }} && echo goodbye"

        job = Sleeper.submit("test/sleep_3", sleeptime=3)

    Either a `command_template` or a method `run(self, ...)` says what runs, never both; a wrong definition raises
    InvalidRequest at the class statement. The docstring is the description. A class belongs to the configured service,
    or to the one its Site object came from. All it may declare: `balsam_exec.apps.definition.ApplicationDefinition`.
    """

    __app_id__: ClassVar[_AppId] = _AppId()
    #: What a class that was loaded has of methods where it is registered, though not here.
    _hooks_at_site: ClassVar[Sequence[str]] = ()

    @classmethod
    def sync(cls) -> None:
        """Register the app at its site, or bring what is registered there under its name up to date."""
        cls._client().sync(cls)

    @classmethod
    def submit(cls, workdir: str, save: bool = True, **fields: Any) -> Job:
        """A job of this app; registers the app first if this process has not yet.

        Takes the fields of `Job` and the app's own parameters, all as keywords. A parameter that is named like a field
        of Job is given through `parameters={...}`. With `save=False` nothing is sent: give many such jobs to
        `Job.objects.bulk_create`. Raises ParameterError before anything is sent.
        """
        from balsam_exec.api.jobs import JOB_FIELDS

        client = cls._client()
        of_job = {name: value for name, value in fields.items() if name in JOB_FIELDS}
        parameters = {name: value for name, value in fields.items() if name not in JOB_FIELDS}
        extra = of_job.pop("parameters", None) or {}
        for name in definition.own_parameters(cls) & set(of_job):
            if name not in extra:
                raise ParameterError(
                    f"{name} is a parameter of {cls.__name__} and a field of Job: give the parameter as "
                    f'parameters={{"{name}": ...}}'
                )
        parameters.update(extra)
        job = client.Job(workdir, cls, parameters=parameters, **of_job)
        check_input(cls, client.synced(cls), parameters)
        if save:
            job.save()
        return job

    @classmethod
    def rename(cls, name: str) -> None:
        """Give the registered app (and this class) another name; its jobs keep it."""
        client = cls._client()
        record = client.service.rename_app(client.app(cls).id, name)
        cls.__name__ = name
        client.adopt(cls, record)

    @staticmethod
    def load_by_site(site: Any) -> dict[str, type[ApplicationDefinition]]:
        """The apps registered at a site (its name, id or object), by name, to submit jobs of.

        The code of a Python app stays where it is: what its `run` takes is not checked here.
        """
        client = _client_of(site)
        loaded = {}
        for app in client.App.objects.filter(site_id=client.site_id(site)):
            loaded[app.name] = found = _class_of(app._record, site)
            client.adopt(found, app._record)
        return loaded

    @classmethod
    def _client(cls) -> Client:
        return _client_of(cls.site)


class App(Resource):
    """What is registered of an app. `ApplicationDefinition.load_by_site` makes classes of them."""

    __slots__ = ()
    _shown = ("id", "site_id", "name", "command_template", "description")
    routes = Routes(
        query=AppQuery,
        page=Service.apps,
        get=Service.app,
        patch_model=AppPatch,
        patch=lambda service, app_id, patch: service.rename_app(app_id, patch.name),
        delete=Service.delete_app,
    )
    objects: ClassVar[Objects[QuerySet[App]]] = Objects(QuerySet)

    id: Field[int] = Field(read_only=True)
    site_id: Field[int] = Field(read_only=True)
    name: Field[str] = Field()
    description: Field[str] = Field(read_only=True)
    command_template: Field[str | None] = Field(read_only=True)
    parameters: Field[Mapping[str, Any]] = Field(read_only=True)
    environment_variables: Field[dict[str, str]] = Field(read_only=True)
    transfers: Field[Mapping[str, Any]] = Field(read_only=True)
    cleanup_files: Field[list[str]] = Field(read_only=True)
    python_exe: Field[str | None] = Field(read_only=True)
    container: Field[str | None] = Field(read_only=True)
    isolation: Field[str] = Field(read_only=True)
    hooks: Field[list[str]] = Field(read_only=True)
    digest: Field[str] = Field(read_only=True)
    created: Field[datetime] = Field(read_only=True)
    last_update: Field[datetime] = Field(read_only=True)


def app_spec_of(app: type, client: Client) -> AppSpec:
    """What `client` registers for the class."""
    if not issubclass(app, ApplicationDefinition) or app is ApplicationDefinition:
        raise InvalidRequest(f"{app.__name__} is no subclass of ApplicationDefinition")
    if app.site is None:
        raise InvalidRequest(f'{app.__name__} needs a site: set the class attribute, such as site = "my-site"')
    if elsewhere := [hook for hook in app._hooks_at_site if not hasattr(app, hook)]:
        raise InvalidRequest(
            f"{app.__name__} was loaded from its site without the code of {', '.join(elsewhere)}: sync it where it is "
            "defined"
        )
    return definition.app_spec(app, client.site_id(app.site), ApplicationDefinition)


def check_input(app: type[ApplicationDefinition], record: AppRecord | None, given: Mapping[str, Any]) -> None:
    """Raise ParameterError unless the app can be given these."""
    if app.command_template is not None:
        specs = definition.parameter_specs(app) if record is None else record.parameters
        definition.command_input(app.__name__, specs, given)
    elif (run := getattr(app, "run", None)) is not None:
        definition.bind(app.__name__, run, given)


def encoded_input(app: Any, record: AppRecord, given: Mapping[str, Any]) -> definition.JobInput:
    """What a job of the app is sent with; `app` may be its class. Raises ParameterError, PayloadError."""
    if record.command_template is not None:
        return definition.command_input(record.name, record.parameters, given)
    return definition.python_input(record.name, getattr(app, "run", None), given)


def _client_of(site: Any) -> Client:
    """The service that a Site object came from; otherwise the configured one."""
    return site._own_client if isinstance(site, Resource) else default_client()


def _class_of(record: AppRecord, site: Any) -> type[ApplicationDefinition]:
    attributes = {
        "__doc__": record.description,
        "site": site,
        "command_template": record.command_template,
        "parameters": record.parameters,
        "environment_variables": record.environment_variables,
        "transfers": record.transfers,
        "cleanup_files": record.cleanup_files,
        "python_exe": record.python_exe,
        "container": record.container,
        "isolation": record.isolation,
        "_hooks_at_site": record.hooks,
    }
    return type(record.name, (ApplicationDefinition,), attributes)
