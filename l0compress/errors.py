"""Everything l0compress raises on purpose, as one tree.

::

    L0Error
    ├── InputError              the caller's input is wrong; the command line exits 2
    │   ├── ModelError          a model file cannot be read, or yields no module
    │   ├── CaptureError        torch.export cannot turn the model into a graph
    │   ├── DataError           data cannot be read, or does not fit the model
    │   ├── TargetError         a budget that is malformed or out of reach
    │   ├── PlanError           a keep plan that does not fit its groups
    │   ├── NothingToPruneError no channel of the graph can be removed
    │   └── RunError            a run folder or artifact is missing or unreadable
    ├── CheckError              a check failed; the command line exits 1
    │   ├── NotEqualError       two models that must agree do not
    │   ├── TargetMissedError   the model that came out is over its budget
    │   ├── DivergedError       the loss or a weight is not finite any more
    │   ├── ProcessesError      of several processes of a run one is gone, or they differ
    │   └── SurgeryError        a graph could not be rewritten exactly; nothing was written
    └── StoppedError            a signal stopped a run, which is kept; exits 130 (Ctrl-C) or 143 (SIGTERM)

Beside it stand three warnings: DataWarning, for data that are odd but can be used, LostInCaptureWarning, for what a
model does in training mode alone, and PenaltyWarning, for a fixed penalty that removes nothing or all that may go.

What a bundle raises (L0Error, InputError, RunError) is defined by the runtime, a distribution of its own. Here are the
same classes.

A message says what was wrong, where (layer, file, flag), that nothing was changed, and what to do about it. The third
comes from the class: ``DataError("Label 7 is out of range.", fix="Give labels from 0 to 2.")`` says it in between.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import partial
from itertools import islice
from pathlib import Path

from l0compress_runtime.errors import (
    NOTHING_CHANGED,
    NOTHING_COMPUTED,
    NOTHING_LOADED,
    NOTHING_RUN,
    NOTHING_WRITTEN,
    InputError,
    L0Error,
    RunError,
)

__all__ = [
    "NOTHING_CHANGED",
    "NOTHING_COMPUTED",
    "NOTHING_LOADED",
    "NOTHING_RUN",
    "NOTHING_WRITTEN",
    "CaptureError",
    "CheckError",
    "DataError",
    "DataWarning",
    "DivergedError",
    "InputError",
    "L0Error",
    "LostInCaptureWarning",
    "ModelError",
    "NotEqualError",
    "NothingToPruneError",
    "PenaltyWarning",
    "PlanError",
    "ProcessesError",
    "RunError",
    "StoppedError",
    "SurgeryError",
    "TargetError",
    "TargetMissedError",
    "did_you_mean",
    "did_you_mean_path",
    "nearest",
]


# Names of files that belong together are alike: more has to agree before one is taken for a slip in another.
_LIKE_A_PATH = 0.75
_MOST_NEIGHBOURS = 1000


def nearest(given: str, known: Iterable[str], *, least: float = 0.6) -> str | None:
    """Return the known name that is most like another; None where the likeness of all is below ``least``, of 1.

    >>> nearest("mac", ["params", "macs"]), nearest("min-density", ["min_density"]), nearest("x", ["macs"])
    ('macs', 'min_density', None)
    """
    by_plain = {_plain(name): name for name in known}
    close = difflib.get_close_matches(_plain(given), by_plain, n=1, cutoff=least)
    return by_plain[close[0]] if close else None


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return the question whether the nearest of the known names was meant; empty where none is near.

    >>> did_you_mean("fischer", ["l0", "fisher"]), did_you_mean("x", ["l0", "fisher"])
    ("Did you mean 'fisher'?", '')
    """
    found = nearest(given, known)
    return "" if found is None else f"Did you mean {found!r}?"


def did_you_mean_path(path: Path | str, *others: str) -> str:
    """Return the question whether a neighbour of a missing file was meant, or one of some other names.

    >>> did_you_mean_path("digit", "digits"), did_you_mean_path("no/such/folder/x.pt2")
    ("Did you mean 'digits'?", '')
    """
    path = Path(path)
    try:
        names = [entry.name for entry in islice(path.parent.iterdir(), _MOST_NEIGHBOURS)]
    except OSError:
        names = []
    # Files of one kind end alike, which says nothing. Of several with one stem that with the same ending comes first.
    listed = sorted((Path(name) for name in (*others, *names)), key=lambda one: (one.suffix != path.suffix, one.name))
    by_stem: dict[str, str] = {}
    for one in listed:
        by_stem.setdefault(one.stem, one.name)
    stem = nearest(path.stem, by_stem, least=_LIKE_A_PATH)
    if stem is None:
        return ""
    found = by_stem[stem]
    return f"Did you mean {found if found in others else str(path.with_name(found))!r}?"


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


class ModelError(InputError):
    """A model file cannot be read, or does not yield a module."""


class CaptureError(InputError):
    """The model cannot be captured as a graph by ``torch.export``."""


class DataError(InputError):
    """Data cannot be read, or does not fit the model."""


class DataWarning(UserWarning):
    """Data that can be trained on, but hardly as their owner means it: sorted by class, or a part without a class."""


class LostInCaptureWarning(UserWarning):
    """A model does something in training mode that its graph cannot do, such as stochastic depth."""


class PenaltyWarning(UserWarning):
    """A fixed penalty removes nothing, or all that may go."""


class TargetError(InputError):
    """A budget is malformed, out of range, or below what the model can be reduced to."""


class PlanError(InputError):
    """A keep plan does not fit the groups that it is applied to."""


class NothingToPruneError(InputError):
    """No channel of the graph can be removed; the message lists the reasons."""


class CheckError(L0Error):
    """A check on a result failed: the result is refused."""

    assurance = NOTHING_WRITTEN


class NotEqualError(CheckError):
    """Two models that must compute the same function do not; the message says where."""


class TargetMissedError(CheckError):
    """The model that came out is over its budget."""


class DivergedError(CheckError):
    """Training broke down: the loss or a weight is not finite, or the loss is beyond all measure."""


class ProcessesError(CheckError):
    """Of the processes that train one model together, one is gone, or what they hold is not the same."""


class SurgeryError(CheckError):
    """A graph could not be rewritten exactly; the original is unchanged."""


class StoppedError(L0Error):
    """A signal stopped a run; its folder is kept and can be resumed. ``exit_code`` is 128 plus the signal."""

    def __init__(self, message: str, *, signal: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuild with the signal: by default an exception is rebuilt from its positional arguments only."""
        return partial(type(self), signal=self.exit_code - 128), self.args, self.__dict__
