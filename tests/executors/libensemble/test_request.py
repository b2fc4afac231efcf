"""What the arguments of `submit` mean."""

from __future__ import annotations

from typing import Any

import pytest
from libensemble.executors.executor import ExecutorException

from balsam_exec.executors.libensemble.request import (
    Shape,
    launcher_options,
    mpi_prefix,
    output_name,
    parameters_of,
    shape,
    transfers_of,
    words_of,
)
from balsam_exec.model.apps import AppRecord, ParameterSpec, TransferSlot
from balsam_exec.model.base import now


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, Shape(1, 1)),
        ({"num_procs": 8}, Shape(1, 8)),
        ({"num_procs": "8"}, Shape(1, 8)),
        ({"num_procs": 0, "num_nodes": "", "procs_per_node": None}, Shape(1, 1)),
        ({"num_nodes": 2}, Shape(2, 1)),
        ({"procs_per_node": 4}, Shape(1, 4)),
        ({"num_procs": 8, "num_nodes": 2}, Shape(2, 4)),
        ({"num_procs": 8, "procs_per_node": 4}, Shape(2, 4)),
        ({"num_nodes": 2, "procs_per_node": 4}, Shape(2, 4)),
        ({"num_procs": 8, "num_nodes": 2, "procs_per_node": 4}, Shape(2, 4)),
        ({"num_procs": 2, "gpus_per_rank": 3}, Shape(1, 2, 3.0)),
        ({"num_procs": 2, "num_gpus": 4}, Shape(1, 2, 2.0)),
        ({"num_procs": 2, "num_gpus": 1}, Shape(1, 2, 0.5)),
        ({"num_procs": 2, "num_gpus": 4, "gpus_per_rank": 2}, Shape(1, 2, 2.0)),
        ({"num_procs": 2, "num_gpus": 0}, Shape(1, 2)),
        ({"num_gpus": 4, "match_procs_to_gpus": True}, Shape(1, 4, 1.0)),
        ({"num_gpus": 4, "num_nodes": 2, "match_procs_to_gpus": True}, Shape(2, 2, 1.0)),
        ({"num_gpus": 4, "num_procs": 2, "match_procs_to_gpus": True}, Shape(1, 2, 2.0)),
    ],
)
def test_numbers_that_fit_together(given: dict[str, Any], expected: Shape) -> None:
    assert shape(**given) == expected


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"num_procs": 8, "num_nodes": 2, "procs_per_node": 3}, "num_procs=8 is not num_nodes=2 times"),
        ({"num_procs": 7, "num_nodes": 2}, "cannot be spread evenly over num_nodes=2"),
        ({"num_procs": 7, "procs_per_node": 2}, "not a multiple of procs_per_node=2"),
        ({"num_procs": "many"}, "num_procs='many' is not a number"),
        ({"num_nodes": -1}, "num_nodes=-1"),
        ({"num_procs": 1.5}, "num_procs=1.5"),
        ({"num_procs": 2, "num_gpus": 2, "gpus_per_rank": 2}, "num_gpus=2 is not gpus_per_rank=2 for 2 ranks"),
        ({"gpus_per_rank": -1}, "negative"),
    ],
)
def test_numbers_that_contradict_each_other(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ExecutorException, match=says):
        shape(**given)


def test_options_of_the_mpi_launcher() -> None:
    assert launcher_options(None) == launcher_options("") == launcher_options({}) == ({}, {})
    assert launcher_options({"--bind-to": "core", "-v": ""}) == ({"--bind-to": "core", "-v": ""}, {})
    line = "-n 4 -ppn 2 --bind-to core -v"
    assert launcher_options(line) == ({"--bind-to": "core", "-v": ""}, {"num_procs": 4, "procs_per_node": 2})
    with pytest.raises(ExecutorException, match="-env twice"):
        launcher_options("-env A -env B")
    with pytest.raises(ExecutorException, match="-n='four'"):
        launcher_options("-n four")
    assert mpi_prefix(Shape(2, 2), {"--bind-to": "core", "-v": ""}) == ["mpiexec", "-n", "4", "--bind-to", "core", "-v"]
    assert mpi_prefix(Shape(1, 1), {"-v": ""}) == []


def test_arguments_of_executables() -> None:
    assert words_of(None) == []
    assert words_of("sleep  1 Error") == ["sleep", "1", "Error"]
    assert words_of(["two words", 3]) == ["two words", "3"]
    with pytest.raises(ExecutorException, match="a line or a list"):
        words_of({"x": 1})
    with pytest.raises(ExecutorException, match="a line or a list"):
        words_of(5)


def test_parameters_of_definitions() -> None:
    one, two = {"x": ParameterSpec()}, {"x": ParameterSpec(), "y": ParameterSpec()}
    assert parameters_of("app", two, None) == {}
    assert parameters_of("app", two, {"x": 1}) == {"x": 1}
    assert parameters_of("app", one, "1 2") == {"x": ["1", "2"]}
    with pytest.raises(ExecutorException, match=r"a dictionary .it takes: x, y"):
        parameters_of("app", two, "1 2")


def test_transfers() -> None:
    slots = {
        "data": TransferSlot(direction="in", local_path="data"),
        "log": TransferSlot(direction="out", local_path="log", required=False),
    }
    app = AppRecord(
        id=1, site_id=1, name="app", command_template="true", transfers=slots, digest="", created=now(),
        last_update=now(),
    )  # fmt: skip
    assert transfers_of(app, {"data": "here:/a"}) == {"data": "here:/a"}
    both = {"data": {"location": "here", "path": "/a"}, "log": "here:/log"}
    assert transfers_of(app, both) == {"data": "here:/a", "log": "here:/log"}
    with pytest.raises(ExecutorException, match=r"unknown: other; missing: data .it has: data, log"):
        transfers_of(app, {"other": "here:/a"})
    with pytest.raises(ExecutorException, match="location and path"):
        transfers_of(app, {"data": {"path": "/a"}})


def test_output_files_are_in_the_directory_of_the_task() -> None:
    assert output_name("out.txt", "/here") == output_name("./out.txt", "/here") == "out.txt"
    assert output_name("/here/logs/out.txt", "/here") == "logs/out.txt"
    for outside in ("/elsewhere/out.txt", "../out.txt"):
        with pytest.raises(ExecutorException, match="not in the directory"):
            output_name(outside, "/here")
