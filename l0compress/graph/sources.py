"""Which line of the user's own code something comes from."""

from __future__ import annotations

import re

from torch import fx

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_LIBRARY = re.compile(r"site-packages[/\\]torch[/\\]|^<")


def source_line(node: fx.Node) -> str:
    """The innermost line of the user's own code that made a node: ``file.py:line``, empty where it is not known."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    own = [frame for frame in frames if is_own(frame[0])]
    return short_line(own[-1][0], int(own[-1][1])) if own else ""


def is_own(file: str) -> bool:
    """Whether a file is neither PyTorch's nor made up at run time."""
    return not _LIBRARY.search(file)


def short_line(file: str, line: int) -> str:
    """``file.py:line`` of a path on any system.

    Examples:
        >>> short_line("/home/me/model.py", 3)
        'model.py:3'
    """
    return f"{file.replace(chr(92), '/').rpartition('/')[2]}:{line}"
