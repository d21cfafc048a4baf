"""Which line of the user's own code something comes from."""

from __future__ import annotations

import re

from torch import fx

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_LIBRARY = re.compile(r"site-packages[/\\]torch[/\\]|^<")


def source_line(node: fx.Node) -> str:
    """The innermost line of the user's own code that made a node: ``file.py:line``, empty where it is not known."""
    return next(iter(own_lines(node)), "")


def own_lines(node: fx.Node) -> tuple[str, ...]:
    """The lines of the user's own code that led to a node, innermost first, as far as ``torch.export`` noted them."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    return tuple(short_line(file, int(line)) for file, line in reversed(frames) if is_own(file))


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
