"""Removing files of a workdir by globs, and nothing else, whatever links and patterns there are."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from balsam_exec.model.jobs import check_workdir

log = logging.getLogger(__name__)

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ANY_DEPTH = "**"


def is_deep(pattern: str) -> bool:
    """Whether the glob may match below the workdir's own directory."""
    return "/" in pattern or pattern == _ANY_DEPTH


def matches(path: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a glob means a file, both given by the parts of their paths, as shells have it: `*` stays within a
    directory, `**` is any number of directories (at the end, all they hold), a leading dot has to be given."""
    if not pattern:
        return not path
    head, rest = pattern[0], pattern[1:]
    if head == _ANY_DEPTH:
        rest = rest or ["*"]
        visible = next((i for i, name in enumerate(path) if name.startswith(".")), len(path))
        return any(matches(path[depth:], rest) for depth in range(visible + 1))
    if not path or (path[0].startswith(".") and not head.startswith(".")):
        return False
    return fnmatchcase(path[0], head) and matches(path[1:], rest)


def remove(data: Path, workdir: str, patterns: Iterable[str]) -> list[str]:
    """Remove what matches from a workdir in the site's directory `data`: files and links, no directories.

    Returns what was removed, relative to the workdir. Links are not followed, neither in the workdir nor on the way to
    it, and a glob that leads upwards matches nothing. A file that cannot be removed is logged, and stays. Raises
    OSError where the workdir cannot be entered, ValueError for one that is outside of `data`.
    """
    globs = list(patterns)
    wanted = [glob.split("/") for glob in globs]
    deep = any(map(is_deep, globs))
    removed = []
    top = _enter(data, check_workdir(workdir))
    try:
        for root, directories, files, descriptor in os.fwalk(".", dir_fd=top):
            above = PurePosixPath(root).parts
            for name in [*files, *(name for name in directories if _is_link(name, descriptor))]:
                path = (*above, name)
                if any(matches(path, glob) for glob in wanted) and _unlink(name, descriptor, workdir):
                    removed.append("/".join(path))
            if not deep:
                directories.clear()
    finally:
        os.close(top)
    return removed


def _enter(data: Path, workdir: str) -> int:
    """A descriptor of the workdir."""
    found = os.open(data, _DIRECTORY & ~os.O_NOFOLLOW)  # where a site's data lies is for its owner to say
    for part in PurePosixPath(workdir).parts:
        above = found
        try:
            found = os.open(part, _DIRECTORY, dir_fd=above)
        finally:
            os.close(above)
    return found


def _is_link(name: str, directory: int) -> bool:
    return stat.S_ISLNK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)


def _unlink(name: str, directory: int, workdir: str) -> bool:
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return False
    except OSError as error:
        log.warning("%s in %s cannot be removed: %s", name, workdir, error.strerror)
        return False
    return True
