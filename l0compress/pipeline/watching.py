"""Who hears of a run in Python: the caller's own function, and where that is wanted the command line's display.

The display draws with libraries that only the command line uses. It is found by its name, as a loss of the user's own
is, so that nothing here depends on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from l0compress.loading import import_reference
from l0compress.training.events import OnEvent, ProgressEvent, ignore
from l0compress.training.processes import joined

DISPLAY = "l0compress.cli.progress:display"


@contextmanager
def watched(on_event: OnEvent, *, progress: bool) -> Iterator[OnEvent]:
    """The listener of a run: ``on_event``, and with ``progress`` the display, which says what is odd by itself."""
    if not progress or not joined().is_first:
        yield on_event
        return
    with import_reference(DISPLAY, flag="progress")() as display:

        def both(event: ProgressEvent) -> None:
            display.show(event)
            if on_event is not ignore:
                on_event(event)

        yield both
