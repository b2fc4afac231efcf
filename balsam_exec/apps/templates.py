"""Command templates (Jinja2, seed 001 "Command Template"): their parameters, and the command line they make.

Every value that reaches the command line is quoted for the shell, also what a filter or an expression made of it.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, meta
from jinja2.sandbox import SandboxedEnvironment

from balsam_exec.model.apps import ParameterSpec, check_parameters
from balsam_exec.model.errors import ParameterError

#: `{{ my-name }}` is a subtraction to Jinja2; a person meant a name.
_DASHED = re.compile(r"\{\{-?\s*([A-Za-z_]\w*(?:-\w+)+)\s*-?\}\}")


def parameters_of(template: str) -> set[str]:
    """The names a template takes. Raises ParameterError for what is no template or no identifier."""
    if dashed := _DASHED.search(template):
        raise ParameterError(f"{dashed.group(1)!r} in a command template is not a valid identifier: use _ instead of -")
    try:
        return meta.find_undeclared_variables(_environment().parse(template))
    except TemplateError as exc:
        raise ParameterError(f"bad command template {template!r}: {exc}") from exc


def render(template: str, specs: Mapping[str, ParameterSpec], values: Mapping[str, Any], name: str = "the app") -> str:
    """The command line, with defaults filled in. Raises ParameterError naming what is missing, unknown or unfit."""
    check_parameters(name, specs, values)
    full = {key: spec.default for key, spec in specs.items() if not spec.required} | dict(values)
    try:
        return _compiled(template).render(full)
    except (TemplateError, TypeError, ValueError, ArithmeticError) as exc:
        if isinstance(exc, ParameterError):
            raise
        raise ParameterError(f"cannot fill in the command template of {name}: {exc}") from exc


def quote(value: Any) -> str:
    """One value for the shell: text, numbers, booleans and paths as one word, a list as several."""
    if isinstance(value, (list, tuple)):
        return " ".join(map(quote, value))
    if not isinstance(value, (str, int, float, os.PathLike)):
        raise ParameterError(
            f"a {type(value).__name__} cannot stand in a command: give text, a number, a path or a list"
        )
    text = os.fspath(value) if isinstance(value, os.PathLike) else str(value)
    if "\0" in text:
        raise ParameterError("a value with a NUL character cannot stand in a command")
    return shlex.quote(text)


def _finalize(value: Any) -> str:
    if isinstance(value, StrictUndefined):
        return str(value)  # raises, naming the variable
    return quote(value)


@lru_cache(maxsize=1)
def _environment() -> SandboxedEnvironment:
    environment = SandboxedEnvironment(undefined=StrictUndefined, finalize=_finalize, autoescape=False)
    environment.globals.clear()  # so that every name in a template is a parameter
    return environment


@lru_cache(maxsize=256)
def _compiled(template: str) -> Template:
    return _environment().from_string(template)
