"""A bar on standard error with a steady time left, for whatever takes longer than a moment."""

from __future__ import annotations

import time
from contextlib import ExitStack
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from l0compress.progress import heard_by

# An estimate from less than this share of a job says little.
_EARLY = 0.02
_WEIGHT = 0.1


class SteadyTime:
    """The time that is left, from estimates that jump: the mean of the first ones, later each counts for a tenth.

    >>> left = SteadyTime()
    >>> left.estimate(100.0, now=0.0), left.estimate(50.0, now=0.0), left.estimate(65.0, now=10.0)
    (100.0, 75.0, 65.0)
    """

    def __init__(self) -> None:
        self._end, self._count = 0.0, 0

    def estimate(self, seconds: float, *, now: float) -> float:
        """Take an estimate of the seconds that are left, and return the steady one."""
        self._count += 1
        self._end += max(_WEIGHT, 1 / self._count) * (now + seconds - self._end)
        return max(0.0, self._end - now)


class Bar:
    """Shows one job at a time: what is done, a bar, and the time that is left. Nothing where nobody watches.

    Use it as a context manager: what is told inside (:mod:`l0compress.progress`) is shown.

    Args:
        console: where it is shown, if that is a terminal.
        still: it moves only when something is told, so that no thread of its own disturbs what is being timed.
        shown: False where another process shows the same job.
    """

    def __init__(self, console: Console, *, still: bool = False, shown: bool = True) -> None:
        watched = shown and console.is_terminal and not console.is_dumb_terminal
        self._progress = _columns(console, still=still) if watched else None
        self._still = still
        self._task: TaskID | None = None
        self._job, self._began, self._left = "", 0.0, SteadyTime()
        self._open = ExitStack()

    def __enter__(self) -> Bar:
        self._open.enter_context(heard_by(self._hear))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open.close()
        if self._progress is not None and self._task is not None:
            self._progress.stop()

    def show(self, what: str, share: float, details: str = "", *, seconds_left: float | None = None) -> None:
        """Show what is being done, and which share of the job is done; the job is one as long as the share grows."""
        if self._progress is None:
            return
        now = time.monotonic()
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task("", total=None, details="", left="")
        seconds = self._seconds_left(share, now) if seconds_left is None else seconds_left
        left = "" if seconds is None else f"{clock(self._left.estimate(seconds, now=now))} left"
        total = 1.0 if share > 0 else None
        self._progress.update(self._task, description=what, completed=share, total=total, details=details, left=left)
        if self._still:
            self._progress.refresh()

    def _hear(self, what: str, share: float) -> None:
        if share == 0.0 or self._job == "":
            self._job, self._began, self._left = what, time.monotonic(), SteadyTime()
        self.show(what, share)

    def _seconds_left(self, share: float, now: float) -> float | None:
        return None if share < _EARLY else (now - self._began) / share * (1 - share)


def _columns(console: Console, *, still: bool) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[details]}", markup=False),
        TextColumn("{task.fields[left]}", markup=False, justify="right"),
        console=console,
        transient=True,
        expand=True,
        auto_refresh=not still,
        refresh_per_second=4,
        redirect_stdout=False,
    )


def clock(seconds: float) -> str:
    """Seconds as a clock shows them.

    >>> clock(65), clock(3725)
    ('1:05', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
