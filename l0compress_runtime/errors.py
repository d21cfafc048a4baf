"""Deliberate errors of the runtime: the root of l0compress's error tree, and the branches that the runtime needs.

::

    L0Error
    └── InputError      an argument or an array does not fit
        └── RunError    a bundle is missing, damaged, or not what it claims to be

``l0compress.errors`` has the rest of the tree, and these same classes under the same names.
"""

from __future__ import annotations


class L0Error(Exception):
    """Root of the tree: catch this to catch every deliberate error of l0compress."""

    exit_code = 1


class InputError(L0Error):
    """The caller's input is wrong: nothing was computed and nothing was written."""

    exit_code = 2


class RunError(InputError):
    """A run folder, an artifact or a bundle is missing or cannot be read."""
