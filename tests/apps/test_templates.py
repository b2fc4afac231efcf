"""Command templates: what they take, what they make, and that no value escapes its quotes."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balsam_exec.apps.templates import parameters_of, render
from balsam_exec.model.apps import ParameterSpec
from balsam_exec.model.errors import ParameterError


def fill(template: str, **values: Any) -> str:
    return render(template, {name: ParameterSpec() for name in parameters_of(template)}, values)


@pytest.mark.parametrize(
    ("template", "names"),
    [
        ("sim", set()),
        ("sim {{ a }} {{b}} {{ a|upper }}", {"a", "b"}),
        ("{% for f in files %}-f {{ f }} {% endfor %}{% if flag %}-v{% endif %}", {"files", "flag"}),
        ("{{ range }} {{ dict }} {{ namespace }}", {"range", "dict", "namespace"}),
        ("{% set x = y %}{{ x }}", {"y"}),
    ],
)
def test_parameters(template: str, names: set[str]) -> None:
    assert parameters_of(template) == names


@pytest.mark.parametrize(
    "template", ["{{ my-name }}", "a {{- my-long-name -}}", "{{ 2x }}", "{{ x", "{% if x %}", "{{}}"]
)
def test_what_is_no_template_is_refused(template: str) -> None:
    with pytest.raises(ParameterError):
        parameters_of(template)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a b", "'a b'"),
        ("", "''"),
        ("$(rm -rf /)", "'$(rm -rf /)'"),
        (3, "3"),
        (-2.5, "-2.5"),
        (True, "True"),
        (Path("/x y"), "'/x y'"),
        (["a b", 1], "'a b' 1"),
        ([], ""),
    ],
)
def test_values_are_quoted(value: Any, text: str) -> None:
    assert fill("{{ x }}", x=value) == text


@pytest.mark.parametrize("value", [None, {"a": 1}, {1}, b"x", object(), "a\0b"])
def test_values_that_are_no_words_are_refused(value: Any) -> None:
    with pytest.raises(ParameterError):
        fill("{{ x }}", x=value)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_a_shell_sees_each_value_as_one_word(value: str) -> None:
    script = fill("printf '%s' {{ x }} | od -An -v -tx1 && echo {{ x|upper }} > /dev/null", x=value)
    shown = subprocess.run(["bash", "-c", script], capture_output=True, check=True, timeout=20).stdout
    assert bytes.fromhex(shown.decode().replace("\n", "").replace(" ", "")) == value.encode()


def test_logic_sees_the_values_themselves() -> None:
    assert fill("{% for f in fs %}-f {{ f }} {% endfor %}{% if n > 2 %}many{% endif %}", fs=["a", "b c"], n=3) == (
        "-f a -f 'b c' many"
    )
    assert fill("{{ x + 1 }} {{ x|string|length }}", x=41) == "42 2"


def test_defaults_missing_and_unknown() -> None:
    specs = {"a": ParameterSpec(), "b": ParameterSpec(required=False, default="x y")}
    assert render("{{ a }} {{ b }}", specs, {"a": 1}) == "1 'x y'"
    assert render("{{ a }} {{ b }}", specs, {"a": 1, "b": 2}) == "1 2"
    with pytest.raises(ParameterError, match="missing: a; unknown: c"):
        render("{{ a }} {{ b }}", specs, {"c": 1})


@pytest.mark.parametrize("template", ["{{ x.__class__.__mro__ }}", "{{ x.nothing }}", "{{ x / 0 }}", "{{ x + 'a' }}"])
def test_what_a_template_cannot_do_is_a_parameter_error(template: str) -> None:
    with pytest.raises(ParameterError, match="cannot fill in the command template of the app"):
        fill(template, x=1)
