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

Beside it stand two warnings: DataWarning, for data that are odd but can be used, and LostInCaptureWarning, for what a
model does in training mode alone.

What a bundle raises (L0Error, InputError, RunError) is defined by the runtime, a distribution of its own. Here are the
same classes.

A message says what was wrong, where (layer, file, flag), that nothing was changed, and what to do about it. The third
comes from the class: ``DataError("Label 7 is out of range.", fix="Give labels from 0 to 2.")`` says it in between.
"""

from __future__ import annotations

from functools import partial

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
    "PlanError",
    "ProcessesError",
    "RunError",
    "StoppedError",
    "SurgeryError",
    "TargetError",
    "TargetMissedError",
]


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
