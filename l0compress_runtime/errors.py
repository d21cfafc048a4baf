"""Deliberate errors of the runtime: the root of l0compress's error tree, and the branches that the runtime needs.

::

    L0Error
    └── InputError      an argument or an array does not fit
        └── RunError    a bundle is missing, damaged, or not what it claims to be

``l0compress.errors`` has the rest of the tree, and these same classes under the same names.

A message says what was wrong and where, then that nothing was changed or lost, then how to fix it. The middle sentence
belongs to the class: ``assurance``. Where another one is true, the constants below are passed instead.
"""

from __future__ import annotations

NOTHING_CHANGED = "Nothing was changed."
NOTHING_WRITTEN = "Nothing was written."
NOTHING_COMPUTED = "Nothing was computed."
NOTHING_RUN = "Nothing was run."
NOTHING_LOADED = "Nothing was loaded."


class L0Error(Exception):
    """Root of the tree: catch this to catch every deliberate error of l0compress.

    The message is ``what`` alone, or with a ``fix`` (which may be empty, where there is none to name) ``what``, the
    sentence that nothing was lost, and the ``fix``. That sentence is ``assurance``, by default that of the class.

    Example:
        >>> print(L0Error("Label 7 is out of range.", fix="Give labels from 0 to 2."))
        Label 7 is out of range. Nothing was changed. Give labels from 0 to 2.
        >>> print(L0Error("Cannot write a.onnx.", fix="", assurance=NOTHING_WRITTEN))
        Cannot write a.onnx. Nothing was written.
        >>> print(L0Error("The run is kept in runs/a."))
        The run is kept in runs/a.
    """

    exit_code = 1
    assurance = NOTHING_CHANGED

    def __init__(self, what: str = "", *, fix: str | None = None, assurance: str | None = None) -> None:
        if fix is not None:
            sentence = self.assurance if assurance is None else assurance
            what = " ".join(part for part in (what, sentence, fix) if part)
        super().__init__(what)  # the whole message, so that pickling and copying rebuild it from one argument


class InputError(L0Error):
    """The caller's input is wrong: nothing was computed and nothing was written."""

    exit_code = 2


class RunError(InputError):
    """A run folder, an artifact or a bundle is missing or cannot be read."""
