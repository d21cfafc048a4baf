"""Live progress on standard error: a bar with the time that is left on a terminal, one line an epoch where nobody
watches."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.text import Text

from l0compress.cli.bar import Bar, clock
from l0compress.cli.render import messages
from l0compress.training.events import DECIDED, MEASURE, WARNING, ProgressEvent

GATED_STAGE = "gates"
RESUMED = "resumed"


class ProgressDisplay:
    """Shows the events of a run while it runs: a table of finished epochs, and what is under way below it.

    Use it as a context manager and hand :meth:`show` to the run as its callback. What else is told of a job meanwhile,
    such as that a model is being captured, is shown too.
    """

    def __init__(self, console: Console, *, shown: bool = True) -> None:
        self._console = console
        self._bar = Bar(console, shown=shown)
        self._has_header = False
        self._member = ""

    def __enter__(self) -> ProgressDisplay:
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, traceback)

    def show(self, event: ProgressEvent) -> None:
        """Show one event."""
        if event.stage == WARNING:
            text = Text("Warning: ", style="bold yellow") + Text(event.message, style="default")
            self._console.print(text, soft_wrap=True)
            return
        if event.stage == DECIDED:
            self._console.print(Text(event.message), soft_wrap=True)
            return
        if event.stage == RESUMED:
            self._console.print(Text(_resumed(event), style="bold"), soft_wrap=True)
            return
        if event.member != self._member:
            self._member = event.member
            self._console.print(Text(f"member {event.member}, {event.epochs} epochs", style="bold"), soft_wrap=True)
        if not event.epoch_done:
            self._bar.show(*_under_way(event), seconds_left=event.seconds_left)
            return
        if not self._has_header:
            self._has_header = True
            self._console.print(Text(_header(event), style="bold"), soft_wrap=True)
        self._console.print(Text(_line(event)), soft_wrap=True)


def display() -> ProgressDisplay:
    """What ``compress(..., progress=True)`` shows: what the command line shows, on standard error."""
    return ProgressDisplay(messages())


def _resumed(event: ProgressEvent) -> str:
    """Which epoch and step a run goes on at.

    >>> _resumed(ProgressEvent("resumed", 3, 48, step=5, steps=33)), _resumed(ProgressEvent("resumed", 49, 48))
    ('resumed in epoch 3 of 48, after step 5 of 33', 'resumed after epoch 48 of 48')
    """
    if event.step == 0:
        return f"resumed after epoch {event.epoch - 1} of {event.epochs}"
    return f"resumed in epoch {event.epoch} of {event.epochs}, after step {event.step} of {event.steps}"


def _header(event: ProgressEvent) -> str:
    return (
        f"{'stage':<9}{'epoch':>8}{'loss':>10}{event.metric_name:>10}{'density':>9}"
        f"{'violation':>11}{'multiplier':>12}{'left':>9}"
    )


def _line(event: ProgressEvent) -> str:
    # Only while gates are learned is there a constraint to violate.
    gated = event.stage == GATED_STAGE
    violation, multiplier = (f"{event.violation:+.3f}", f"{event.multiplier:.3f}") if gated else ("-", "-")
    return (
        f"{event.stage:<9}{f'{event.epoch}/{event.epochs}':>8}{_number(event.loss):>10}{_number(event.metric):>10}"
        f"{event.density:>9.3f}{violation:>11}{multiplier:>12}{_time(event.seconds_left):>9}{_of_each(event)}"
    )


def _under_way(event: ProgressEvent) -> tuple[str, float, str]:
    """What is being done, the share of it that is done, and what else there is to say.

    >>> _under_way(ProgressEvent("gates", 3, 8, step=5, steps=10, loss=0.5, density=0.25, violation=0.1))
    ('gates 3/8', 0.3125, 'loss 0.5000  density 0.250  violation +0.100')
    """
    if event.stage == MEASURE:
        return f"measuring {event.message}", event.step / event.steps if event.steps else 0.0, ""
    within = event.step / event.steps if event.steps else 0.0
    done = (max(event.epoch - 1, 0) + within) / event.epochs if event.epochs else within
    violation = f"  violation {event.violation:+.3f}" if event.stage == GATED_STAGE else ""
    details = f"loss {_number(event.loss)}  density {event.density:.3f}{violation}"
    return f"{event.stage} {event.epoch}/{event.epochs}", done, details


def _of_each(event: ProgressEvent) -> str:
    """The density in each unit, where there are several targets.

    >>> constraints = {"macs": {"density": 0.5}, "bytes": {"density": 0.75}}
    >>> _of_each(ProgressEvent("finetune", 1, 2, constraints=constraints)), _of_each(ProgressEvent("finetune", 1, 2))
    ('  macs 0.500, bytes 0.750', '')
    """
    found = ", ".join(f"{unit} {values['density']:.3f}" for unit, values in event.constraints.items())
    return f"  {found}" if found else ""


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else clock(seconds)
