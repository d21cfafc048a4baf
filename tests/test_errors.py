"""The error tree: how a message is composed, and that an error survives pickling and copying."""

from __future__ import annotations

import copy
import pickle

import pytest

from l0compress import errors
from l0compress.errors import CheckError, DataError, InputError, L0Error, StoppedError, SurgeryError

TREE = [getattr(errors, name) for name in errors.__all__ if name.endswith("Error")]


@pytest.mark.parametrize("kind", TREE)
def test_the_message_alone_stays_as_it_is(kind: type[L0Error]) -> None:
    made = kind("The run is kept.", signal=2) if kind is StoppedError else kind("The run is kept.")
    assert str(made) == "The run is kept."


@pytest.mark.parametrize(
    "made, message",
    [
        (L0Error("It is wrong.", fix="Mend it."), "It is wrong. Nothing was changed. Mend it."),
        (DataError("It is wrong.", fix="Mend it."), "It is wrong. Nothing was changed. Mend it."),
        (CheckError("It is wrong.", fix="Mend it."), "It is wrong. Nothing was written. Mend it."),
        (SurgeryError("It is wrong.", fix="Mend it."), "It is wrong. Nothing was written. Mend it."),
        (InputError("It is wrong.", fix=""), "It is wrong. Nothing was changed."),
        (InputError("It is wrong.", fix="Mend it.", assurance="All is kept."), "It is wrong. All is kept. Mend it."),
        (InputError("It is wrong.", fix="", assurance="All is kept."), "It is wrong. All is kept."),
    ],
)
def test_with_a_fix_the_class_says_in_between_that_nothing_was_lost(made: L0Error, message: str) -> None:
    assert str(made) == message


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
@pytest.mark.parametrize(
    "made",
    [
        DataError("It is wrong.", fix="Mend it."),
        SurgeryError("It is wrong.", fix="", assurance="All is kept."),
        StoppedError("Stopped by SIGTERM.", signal=15),
    ],
)
def test_an_error_survives_copying_and_pickling(made: L0Error, again) -> None:
    made.add_note("in layer fc1")
    other = again(made)
    assert (type(other), str(other), other.exit_code) == (type(made), str(made), made.exit_code)
    assert other.__notes__ == made.__notes__


def test_an_error_keeps_its_cause() -> None:
    cause = ValueError("too large")
    with pytest.raises(InputError) as caught:
        raise InputError("It is wrong.", fix="Mend it.") from cause
    assert caught.value.__cause__ is cause
