"""Every code block of the documentation runs, page by page and in order, as a reader would run it.

A page becomes a Python script with the same line numbers: `python` blocks as they are, `bash` blocks as calls
of bash; a block with title="FILE" is written to that file. Blocks that cannot run have another tag, such as `text`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from balsam_exec.embedded.deployment import stop

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r'^```(?P<tag>\w*)(?: title="(?P<title>[^"]+)")?\s*$')
PREAMBLE = (
    "import subprocess as _s, pathlib as _p; "
    "_bash = lambda text: _s.run(['bash', '-euo', 'pipefail', '-c', text], check=True, timeout=90); "
)


@dataclass(frozen=True)
class Block:
    tag: str
    title: str | None
    line: int  #: index of its first line in the page
    text: str


def blocks(markdown: str) -> Iterator[Block]:
    lines = markdown.splitlines()
    number = 0
    while number < len(lines):
        if match := FENCE.match(lines[number]):
            end = lines.index("```", number + 1)
            text = "\n".join(lines[number + 1 : end])
            yield Block(match["tag"], match["title"], number + 1, text)
            number = end
        number += 1


def script(markdown: str) -> str | None:
    """The page as a script, None when it has nothing to run."""
    out = [""] * len(markdown.splitlines())
    for block in blocks(markdown):
        if block.title:
            out[block.line] = f"_p.Path({block.title!r}).write_text({block.text + chr(10)!r})"
        elif block.tag == "python":
            out[block.line : block.line + block.text.count("\n") + 1] = block.text.split("\n")
        elif block.tag == "bash":
            out[block.line] = f"_bash({block.text!r})"
    if not any(out):
        return None
    assert not out[0], "a page starts with its heading"
    return "\n".join([PREAMBLE, *out[1:]])


PAGES = {
    str(page.relative_to(ROOT)): found
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if (found := script(page.read_text()))
}


@pytest.mark.parametrize("page", PAGES)
def test_page(page: str, tmp_path: Path, balsam_home: Path) -> None:
    path = tmp_path / f"page_{Path(page).stem}.py"  # not the name of a module that the page imports
    path.write_text(PAGES[page])
    search = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": search, "PYTHONWARNINGS": "error"}
    command = [sys.executable, path]
    try:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=110)
    finally:
        stop(balsam_home)
    assert done.returncode == 0, f"{page}\n{done.stdout}\n{done.stderr}"


PAGE = """\
# Page

```bash
true
```

```python title="a.py"
x = 1
```

```text
no
```
```python
y = 1
z = 2
```
"""


def test_blocks_of_all_kinds_are_found() -> None:
    code = script(PAGE)
    assert code is not None
    lines = code.splitlines()
    assert lines[3] == "_bash('true')"
    assert lines[7] == "_p.Path('a.py').write_text('x = 1\\n')"
    assert lines[14:16] == ["y = 1", "z = 2"]
    assert "no" not in lines
