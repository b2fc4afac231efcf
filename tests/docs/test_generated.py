"""What pages have generated from the code: every marker gives something, and no command is left out."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import typer

from balsam_exec.cli.app import app
from balsam_exec.model.explain import Cause

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generated", ROOT / "docs/_hooks/generated.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_marker_gives_something(hook: ModuleType) -> None:
    found = {name for page in (ROOT / "docs").rglob("*.md") for name in hook.MARKER.findall(page.read_text())}
    assert found == set(hook.GENERATORS)
    for name in found - {"benchmarks"}:  # these read results that are measured elsewhere
        assert len(hook.on_page_markdown(f"<!-- generated: {name} -->").splitlines()) > 3, name


def test_the_page_of_the_command_line_has_all_commands(hook: ModuleType) -> None:
    page = hook.cli()
    root = typer.main.get_command(app)
    for noun, group in root.commands.items():
        for path in [f"{noun} {verb}" for verb in getattr(group, "commands", ())] or [noun]:
            assert f"## `balsam {path}`" in page
    assert "`--on-parent-failure" in page


def test_every_cause_is_explained(hook: ModuleType) -> None:
    assert all(hook.comments(Cause)[cause.name] for cause in Cause)
