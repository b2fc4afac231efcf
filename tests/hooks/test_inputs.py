"""Files that jobs take from their parents."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from balsam_exec.api import ApplicationDefinition, Job
from balsam_exec.hooks.inputs import gather
from balsam_exec.model.errors import InvalidRequest
from balsam_exec.model.jobs import JobRecord
from balsam_exec.model.states import JobState
from tests.hooks.conftest import Bench

pytestmark = pytest.mark.timeout(120)
S = JobState
Tree = Callable[..., str]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """`tree("a", **{"x.dat": "text"})` makes a directory with these files and gives its path."""

    def make(name: str, **files: str) -> str:
        directory = tmp_path / name
        directory.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            path = directory / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return str(directory)

    return make


def job(*patterns: str, **fields: Any) -> JobRecord:
    now = datetime.now(UTC)
    values = {"id": 9, "app_id": 1, "site_id": 1, "workdir": "w", "tags": {}, "data": {}, "parameters": {}, **fields}
    return JobRecord(**values, input_files=list(patterns), state=S.READY, created=now, last_update=now)


def found(directory: str) -> dict[str, str]:
    base = Path(directory)
    return {str(path.relative_to(base)): path.read_text() for path in base.rglob("*") if path.is_file()}


def test_what_matches_comes_under_the_same_names(tree: Tree) -> None:
    one = tree("one", **{"a.dat": "1", "a.txt": "no", "out/deep/b.dat": "2"})
    two = tree("two", **{"c.dat": "3"})
    here = tree("here")
    gather(job("*.dat", "out"), [(1, one), (2, two)], here)
    assert found(here) == {"a.dat": "1", "out/deep/b.dat": "2", "c.dat": "3"}
    assert (Path(here) / "a.dat").samefile(Path(one) / "a.dat")


def test_again_is_the_same(tree: Tree) -> None:
    one = tree("one", **{"a.dat": "1"})
    here = tree("here", **{"a.dat": "older"})
    for _ in range(2):
        gather(job("a.dat"), [(1, one)], here)
        assert found(here) == {"a.dat": "1"}


def test_a_link_is_followed(tree: Tree) -> None:
    one = tree("one", real="1")
    (Path(one) / "link").symlink_to("real")
    here = tree("here")
    gather(job("link"), [(1, one)], here)
    assert found(here) == {"link": "1"}
    assert not (Path(here) / "link").is_symlink()


def test_another_file_system(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", link)
    one = tree("one", **{"a.dat": "1"})
    here = tree("here")
    gather(job("a.dat"), [(1, one)], here)
    assert found(here) == {"a.dat": "1"}


def test_names_that_clash(tree: Tree) -> None:
    parents = [(1, tree("one", **{"a.dat": "1"})), (2, tree("two", **{"a.dat": "2"}))]
    here = tree("here")
    with pytest.raises(InvalidRequest, match=r"parents 1 and 2 both have a\.dat"):
        gather(job("*.dat"), parents, here)
    assert found(here) == {}


def test_a_name_that_no_parent_has(tree: Tree) -> None:
    here = tree("here")
    with pytest.raises(InvalidRequest, match=r"no parent has b\.dat \(1: "):
        gather(job("*.dat", "b.dat"), [(1, tree("one", **{"a.dat": "1"}))], here)
    assert found(here) == {}


def test_a_wildcard_may_match_nothing(tree: Tree) -> None:
    gather(job("*.dat"), [(1, tree("one"))], tree("here"))


def test_own_output_is_not_that_of_a_parent(tree: Tree) -> None:
    one = tree("one", **{"job.out": "its output", "balsam.log": "its log", "a.dat": "1"})
    here = tree("here")
    gather(job("*"), [(1, one)], here)
    assert found(here) == {"a.dat": "1"}
    with pytest.raises(InvalidRequest, match=r"the job itself writes job\.out"):
        gather(job("job.out"), [(1, one)], here)
    gather(job("job.out", stdout="mine.out"), [(1, one)], here)
    assert found(here) == {"a.dat": "1", "job.out": "its output"}


def test_a_workdir_that_they_share(tree: Tree) -> None:
    here = tree("here", **{"a.dat": "1"})
    gather(job("a.dat"), [(1, here), (2, here)], here)
    assert found(here) == {"a.dat": "1"}


class Make(ApplicationDefinition):
    site = "local"
    command_template = "echo {{ word }} > {{ name }}"


class Gather(ApplicationDefinition):
    site = "local"
    command_template = "cat *.dat seen"

    def preprocess(self) -> None:
        from pathlib import Path

        Path("seen").write_text(" ".join(sorted(path.name for path in Path().glob("*.dat"))) + "\n")
        self.job.state = "PREPROCESSED"


def test_from_parents_to_child(bench: Bench) -> None:
    """Before its preprocess, and with no hook at all."""
    parents = [Make.submit(f"make/{n}", word=n, name=f"{n}.dat", node_packing_count=4) for n in range(3)]
    gather = Gather.submit("gather", parent_ids=parents, input_files=["*.dat"])
    plain = Make.submit("plain", word="x", name="0.txt", parent_ids=parents[:1], input_files=["0.dat"])
    gather.result(timeout=60)
    plain.result(timeout=60)
    assert bench.output(gather) == "0\n1\n2\n0.dat 1.dat 2.dat\n"
    assert (bench.data / "plain/0.dat").read_text() == "0\n"
    assert bench.states(gather)[:4] == [S.AWAITING_PARENTS, S.READY, S.STAGED_IN, S.PREPROCESSED]
    assert bench.states(plain)[:4] == [S.AWAITING_PARENTS, S.READY, S.STAGED_IN, S.PREPROCESSED]


def test_what_cannot_be_brought_fails_the_job(bench: Bench) -> None:
    parents = [Make.submit(f"clash/{n}", word=n, name="a.dat", node_packing_count=4) for n in range(2)]
    child = Gather.submit("clash/child", parent_ids=parents, input_files=["*.dat"])
    said = bench.failure(child)
    assert said["hook"] == "input_files"
    assert said["error"].startswith(f"parents {parents[0].id} and {parents[1].id} both have a.dat")
    assert "traceback" not in said
    assert Job.objects.get(id=child.id).state is S.FAILED
