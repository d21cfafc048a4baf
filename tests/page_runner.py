"""Run a page of the documentation: every block of it, in order, in the working directory.

    python tests/page_runner.py docs/howto/images.md

Python blocks share one namespace; one with ``title="file.py"`` becomes that file instead. ``bash`` blocks run with this
Python's programs first. Blocks of other languages, such as ``dockerfile``, are not run. The first block that fails ends
it, with the line of the page that it begins at.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FENCE = re.compile(
    r'^```(?P<language>\w+)(?: title="(?P<title>[\w./]+)")?\n(?P<code>.*?)^```$', re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    title: str | None
    code: str
    line: int


def blocks_of(text: str) -> Iterator[Block]:
    """The blocks of a page, in order.

    >>> [(block.title, block.line) for block in blocks_of('Text\\n```python title="a.py"\\nx = 1\\n```\\n')]
    [('a.py', 2)]
    """
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        yield Block(match["language"], match["title"], match["code"], line)


def first_program(text: str) -> str:
    """The first block of Python of a page.

    >>> first_program('Install\\n```bash\\npip\\n```\\n```python\\nx = 1\\n```\\n')
    'x = 1\\n'
    """
    return next(block.code for block in blocks_of(text) if block.language == "python")


def run(page: Path) -> None:
    """Run all blocks of a page.

    Raises:
        Exception: what the block raised, or ``CalledProcessError``.
    """
    namespace: dict[str, Any] = {"__name__": page.stem}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")]),
    }
    sys.path.insert(0, str(Path.cwd()))
    for block in blocks_of(page.read_text(encoding="utf-8")):
        print(f"--- {page.name}:{block.line} ({block.language})", flush=True)
        if block.title is not None:
            Path(block.title).write_text(block.code, encoding="utf-8")
        elif block.language == "python":
            exec(compile("\n" * block.line + block.code, str(page), "exec"), namespace)
        elif block.language == "bash":
            subprocess.run(["bash", "-euo", "pipefail", "-c", block.code], check=True, env=environment)


if __name__ == "__main__":
    run(Path(sys.argv[1]).resolve())
