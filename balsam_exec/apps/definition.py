"""An app without any network: the class people write, what is checked and sent of it, how its inputs are encoded.

`balsam_exec.api.ApplicationDefinition` adds `sync` and `submit`; a site loads apps over the class here.
"""

from __future__ import annotations

import inspect
import json
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

from pydantic import ValidationError

from balsam_exec.apps.payload import dump_app, dump_arguments, load_arguments
from balsam_exec.model.apps import (
    HOOK_STEPS,
    AppSpec,
    Isolation,
    ParameterSpec,
    TransferSlot,
    check_container,
    check_parameters,
)
from balsam_exec.model.errors import InvalidRequest, ParameterError

#: The methods an app may define; any other is its own helper.
HOOKS = ("run", "shell_preamble", *HOOK_STEPS)


class ApplicationDefinition:
    """An app: what its jobs run at its site, declared as a class (seed 001 "Writing ApplicationDefinitions").

    Exactly one of `command_template` and a method `run(self, ...)` says what runs. The docstring is the description.
    Any of the methods `shell_preamble`, `preprocess`, `postprocess`, `handle_error`, `handle_timeout` adds a step.
    An instance lives for one call of one of them, with the job as `self.job`. `shell_preamble` may also be plain text
    or a list of lines, the same for all jobs.
    """

    #: Where it runs: a site's name, id or Site object.
    site: ClassVar[Any] = None
    #: A shell command (Jinja2); `{{ name }}` makes a parameter, and every value is quoted.
    command_template: ClassVar[str | None] = None
    #: More about parameters of the template: {"required": False, "default": "x", "help": "..."}.
    parameters: ClassVar[Mapping[str, Any]] = {}
    environment_variables: ClassVar[Mapping[str, str]] = {}
    #: Slots for files to stage in and out.
    transfers: ClassVar[Mapping[str, Any]] = {}
    #: Globs, removed from the workdir of finished jobs where the site's cleaner is on.
    cleanup_files: ClassVar[list[str]] = []
    #: The interpreter for `run`; None is the one of the site.
    python_exe: ClassVar[str | None] = None
    #: The words before what runs, for a container: "apptainer exec --nv /path/image.sif". No shell reads them.
    container: ClassVar[str | None] = None
    #: "worker": calls share a warm process; "process": each has a fresh one.
    isolation: ClassVar[str] = "worker"

    def __init__(self, job: Any = None) -> None:
        self.job = job

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check(cls)


def check(cls: type[ApplicationDefinition]) -> None:
    """Raise InvalidRequest or ParameterError for a class that can be no app, nor the base of one."""
    name = cls.__name__
    if cls.command_template is not None:
        if hasattr(cls, "run"):
            raise InvalidRequest(f"{name} has both a command_template and run(): set exactly one")
        parameter_specs(cls)
    elif cls.parameters:
        raise ParameterError(f"{name}.parameters describes a command_template, and there is none")
    for attribute, kind in (("environment_variables", Mapping), ("transfers", Mapping), ("cleanup_files", list)):
        if not isinstance(value := getattr(cls, attribute), kind):
            hint = " (is there a comma after it?)" if isinstance(value, tuple) else ""
            raise InvalidRequest(f"{name}.{attribute} must be a {kind.__name__.lower()}, not {value!r}{hint}")
    for key, value in cls.environment_variables.items():
        if not (isinstance(key, str) and isinstance(value, str)):
            raise InvalidRequest(f"{name}.environment_variables maps str to str, not {key!r} to {value!r}")
        if not key or "=" in key:
            raise InvalidRequest(f"{name}.environment_variables: {key!r} is no name of a variable")
    _check_container(cls)
    if cls.isolation not in set(Isolation):
        raise InvalidRequest(f"{name}.isolation is one of {', '.join(Isolation)}, not {cls.isolation!r}")
    for glob in cls.cleanup_files:
        if not isinstance(glob, str) or not glob or glob.startswith("/") or ".." in glob.split("/"):
            raise InvalidRequest(f"{name}.cleanup_files: {glob!r} is no glob relative to the workdir, without '..'")
    _check_hooks(cls)
    for slot, value in cls.transfers.items():
        _validated(TransferSlot, value, f"{name}.transfers[{slot!r}]")


def _check_container(cls: type[ApplicationDefinition]) -> None:
    if cls.container is None:
        return
    if not isinstance(cls.container, str):
        raise InvalidRequest(f"{cls.__name__}.container must be text, not {cls.container!r}")
    try:
        check_container(cls.container)
    except ValueError as error:
        raise InvalidRequest(f"{cls.__name__}.container: {error}") from None


def _check_hooks(cls: type[ApplicationDefinition]) -> None:
    for hook in HOOKS:
        value = getattr(cls, hook, None)
        lines = value if isinstance(value, (list, tuple)) else [value]
        is_text = hook == "shell_preamble" and all(isinstance(line, str) for line in lines)
        if value is not None and not callable(value) and not is_text:
            wanted = "a method, text or a list of lines" if hook == "shell_preamble" else "a method"
            raise InvalidRequest(f"{cls.__name__}.{hook} must be {wanted}, not {value!r}")


def parameter_specs(cls: type[ApplicationDefinition]) -> dict[str, ParameterSpec]:
    """The parameters of a command app: those its template names, required unless `parameters` says otherwise."""
    if cls.command_template is None:
        return {}
    named = _named_in(cls.command_template)
    for name in cls.parameters:
        if not (isinstance(name, str) and name.isidentifier()):
            raise ParameterError(f"{cls.__name__}.parameters: {name!r} is not an identifier")
    if surplus := sorted(set(cls.parameters) - named):
        raise ParameterError(f"{cls.__name__}.parameters has {', '.join(surplus)}, which its command_template does not")
    return {
        name: _validated(ParameterSpec, cls.parameters.get(name, {}), f"{cls.__name__}.parameters[{name!r}]")
        for name in sorted(named)
    }


def app_spec(cls: type[ApplicationDefinition], site_id: int, base: type) -> AppSpec:
    """What to register. `base` is the class that the author derived from; it does not travel with the code.

    Raises InvalidRequest, PayloadError.
    """
    hooks = [hook for hook in HOOKS if getattr(cls, hook, None) is not None]
    if cls.command_template is None and "run" not in hooks:
        raise InvalidRequest(f"{cls.__name__} has neither a command_template nor run(): set exactly one")
    try:
        return AppSpec(
            site_id=site_id,
            name=cls.__name__,
            description=inspect.cleandoc(cls.__dict__.get("__doc__") or ""),
            command_template=cls.command_template,
            parameters=parameter_specs(cls),
            environment_variables=dict(cls.environment_variables),
            transfers=dict(cls.transfers),
            cleanup_files=cls.cleanup_files,
            python_exe=cls.python_exe,
            container=cls.container,
            isolation=Isolation(cls.isolation),
            hooks=hooks,
            payload=dump_app(cls, base) if hooks else None,
        )
    except ValidationError as error:
        raise InvalidRequest(f"{cls.__name__}: {_explain(error)}") from None


class JobInput(NamedTuple):
    """What a job is run with, as it is sent: JSON for a command, a payload for `run`."""

    parameters: dict[str, Any]
    arguments: bytes | None


def command_input(name: str, declared: Mapping[str, ParameterSpec], given: Mapping[str, Any]) -> JobInput:
    """Raises ParameterError for what is missing, unknown, or cannot be sent as JSON."""
    check_parameters(name, declared, given)
    values = {key: os.fspath(value) if isinstance(value, os.PathLike) else value for key, value in given.items()}
    for key, value in values.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ParameterError(f"parameter {key} of {name} is {value!r}, which is not JSON: {error}") from None
    return JobInput(values, None)


def python_input(name: str, run: Callable[..., Any] | None, given: Mapping[str, Any]) -> JobInput:
    """`given` as the arguments of `run`; unchecked where the code is not at hand (None).

    Raises ParameterError, PayloadError.
    """
    args, kwargs = ((), dict(given)) if run is None else bind(name, run, given)
    return JobInput({}, dump_arguments(args, kwargs))


def bind(name: str, run: Callable[..., Any], given: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword arguments that give `run` (without self) these values by name.

    For `run(self, *dims)`, `dims` is given as a list. Raises ParameterError for what is missing or unknown.
    """
    signature = _signature(run)
    spread, extra = _variadic(signature)
    declared = {key: p for key, p in signature.parameters.items() if key not in (spread, extra)}
    others = {key: value for key, value in given.items() if key not in declared and key != spread}
    missing = sorted(key for key, p in declared.items() if p.default is p.empty and key not in given)
    unknown = sorted(key for key in others if extra is None or not key.isidentifier())
    if missing or unknown:
        problems = [f"missing: {', '.join(missing)}"] if missing else []
        problems += [f"unknown: {', '.join(unknown)}"] if unknown else []
        message = f"parameters of {name}: {'; '.join(problems)} (its run takes: {signature})"
        raise ParameterError(message, missing=missing, unknown=unknown)
    values = given.get(spread) if spread is not None else None
    if values is None and not any(p.kind is p.POSITIONAL_ONLY for p in declared.values()):
        return (), dict(given)
    arguments = {key: given[key] for key in declared if key in given}
    if extra is not None:
        arguments[extra] = others
    bound = inspect.BoundArguments(signature, OrderedDict(arguments))
    if spread is not None and values is not None:
        bound.arguments[spread] = _listed(name, spread, values)
        bound.apply_defaults()  # what stands before the spread values must be there
    return bound.args, bound.kwargs


def python_parameters(arguments: bytes, run: Callable[..., Any] | None) -> dict[str, Any]:
    """The values by name again, as `submit` was given them. Raises PayloadError."""
    args, kwargs = load_arguments(arguments)
    if not args:
        return kwargs
    if run is None:
        return {"args": list(args), **kwargs}
    signature = _signature(run)
    spread, extra = _variadic(signature)
    found = dict(signature.bind_partial(*args, **kwargs).arguments)
    if spread in found:
        found[spread] = list(found[spread])
    others = found.pop(extra, {}) if extra is not None else {}
    return {**found, **others}


def own_parameters(cls: type[ApplicationDefinition]) -> set[str]:
    """The names a job of this app can be given values for (without those of a `**kwargs`)."""
    if cls.command_template is not None:
        return set(parameter_specs(cls))
    run = getattr(cls, "run", None)
    return set() if run is None else set(_signature(run).parameters)


@lru_cache(maxsize=256)
def _named_in(template: str) -> frozenset[str]:
    from balsam_exec.apps.templates import parameters_of  # with Jinja2, which Python apps do not need

    return frozenset(parameters_of(template))


def _signature(run: Callable[..., Any]) -> inspect.Signature:
    """That of `run` without `self`."""
    signature = inspect.signature(run)
    formal = list(signature.parameters.values())
    return signature.replace(parameters=formal[1:] if formal and formal[0].name == "self" else formal)


def _variadic(signature: inspect.Signature) -> tuple[str | None, str | None]:
    """The names of its `*args` and its `**kwargs`."""
    by_kind = {p.kind: p.name for p in signature.parameters.values()}
    return by_kind.get(inspect.Parameter.VAR_POSITIONAL), by_kind.get(inspect.Parameter.VAR_KEYWORD)


def _listed(name: str, spread: str, values: Any) -> tuple[Any, ...]:
    if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__"):
        raise ParameterError(f"parameter {spread} of {name} takes a list of values, not {values!r}")
    return tuple(values)


def _validated(kind: type[Any], value: Any, where: str) -> Any:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise ParameterError(f"{where}: {_explain(error)}") from None


def _explain(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}".removeprefix(": ") for item in error.errors())
