"""What the runtime raises on purpose: the root of l0compress's tree of errors, and those of its branches that it needs.

::

    L0Error
    └── InputError      an argument or an array does not fit
        └── RunError    a bundle is missing, damaged, or not what it claims to be

``l0compress.errors`` has the rest of the tree, and these very classes under the same names.
"""

from __future__ import annotations


class L0Error(Exception):
    """Root of the tree: catch this to catch everything that l0compress raises on purpose."""

    exit_code = 1


class InputError(L0Error):
    """The caller's input is wrong: nothing was computed and nothing was written."""

    exit_code = 2


class RunError(InputError):
    """A run folder, an artifact or a bundle is missing or cannot be read."""
