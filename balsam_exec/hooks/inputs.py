"""Files that a job takes from its parents before it begins (`input_files`)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from balsam_exec.model.errors import InvalidRequest
from balsam_exec.model.hooks import HOOK_LOG
from balsam_exec.model.jobs import JobRecord

_WILD = frozenset("*?[")


def gather(job: JobRecord, parents: Iterable[tuple[int, str]], workdir: str) -> None:
    """Bring what the job's `input_files` match in the workdirs of its parents to its own, under the same names.

    Files are linked where that is possible, and copied where not: they share their content with the parent's. Once
    more it does no harm. Raises InvalidRequest, before anything is brought, for a name that no parent has or that two
    have; OSError.
    """
    here = Path(workdir).resolve()
    own = frozenset({HOOK_LOG, job.stdout, job.stderr})
    for name, source in matching(job.input_files, [(id_, Path(path).resolve()) for id_, path in parents], own).items():
        if (here / name) != source:
            _bring(source, here / name)


def matching(patterns: Iterable[str], parents: Iterable[tuple[int, Path]], own: frozenset[str]) -> Mapping[str, Path]:
    """By their names in the workdir, the files to bring. What a wildcard matches among the job's `own` output files is
    left out, since every job has such."""
    listed = list(parents)
    found: dict[str, tuple[int, Path]] = {}
    for pattern in patterns:
        wild = bool(_WILD & set(pattern))
        matched = [(id_, directory, path) for id_, directory in listed for path in _files(directory, pattern)]
        if not (matched or wild):
            raise InvalidRequest(f"no parent has {pattern} ({_told(listed)})")
        for id_, directory, path in matched:
            name = str(path.relative_to(directory))
            if name in own:
                if wild:
                    continue
                raise InvalidRequest(
                    f"the job itself writes {name}; name it otherwise in the parent, or set stdout here"
                )
            other = found.setdefault(name, (id_, path))
            if other[1] != path:
                raise InvalidRequest(
                    f"parents {other[0]} and {id_} both have {name} ({other[1]}, {path}): "
                    "let them write to different names"
                )
    return {name: path for name, (_, path) in found.items()}


def _files(directory: Path, pattern: str) -> Iterator[Path]:
    """The files that match, and all those in directories that do."""
    for path in sorted(directory.glob(pattern)):
        if path.is_dir() and not path.is_symlink():
            yield from sorted(inner for inner in path.rglob("*") if not inner.is_dir())
        else:
            yield path


def _bring(source: Path, target: Path) -> None:
    """In one step, so that nobody sees half a file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    partial.unlink(missing_ok=True)
    try:
        if source.is_symlink():
            raise OSError  # what it leads to is what is wanted
        os.link(source, partial)
    except OSError:
        shutil.copy2(source, partial)
    os.replace(partial, target)
    partial.unlink(missing_ok=True)  # where both were links to one file already, `replace` leaves it


def _told(parents: Iterable[tuple[int, Path]]) -> str:
    return ", ".join(f"{id_}: {directory}" for id_, directory in parents) or "there is none"
