"""Bars for whoever watches a terminal, and nothing where nobody does."""

from __future__ import annotations

from io import StringIO
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from l0compress.cli.bar import Bar, SteadyTime
from l0compress.cli.progress import ProgressDisplay
from l0compress.graph.capture import capture
from l0compress.measure.bench import bench
from l0compress.pipeline.artifacts import verify_artifact
from l0compress.progress import Stages, heard_by, tell
from l0compress.training.events import ProgressEvent
from l0compress_runtime.timing import Turns, in_turns


def terminal() -> Console:
    return Console(file=StringIO(), force_terminal=True, width=80, color_system=None, _environ={"TERM": "xterm"})


def shown(console: Console) -> str:
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


class TestStages:
    def test_shares_grow_from_nothing_to_all_however_deep_the_parts_are(self) -> None:
        heard: list[tuple[str, float]] = []
        with heard_by(lambda what, share: heard.append((what, share))):
            outer = Stages([2, 6])
            with outer.stage("one"):
                pass
            with outer.stage("two"):
                inner = Stages([1, 1])
                for name in ("a", "b"):
                    with inner.stage(name):
                        tell("half", 0.5)
        shares = [share for _, share in heard]
        assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1
        assert ("two, a, half", 0.25 + 0.75 * 0.25) in heard

    def test_nobody_has_to_listen(self) -> None:
        tell("anything", 0.5)
        with Stages([1]).stage("part"):
            tell("more", 1.0)

    def test_a_part_that_fails_leaves_the_listener_as_it_was(self) -> None:
        heard: list[str] = []
        with heard_by(lambda what, share: heard.append(f"{what} {share:.0%}")):
            with pytest.raises(KeyError), Stages([1]).stage("part"):
                raise KeyError
            tell("after")
        assert heard == ["part 0%", "after 0%"]

    @pytest.mark.slow
    def test_timing_and_verifying_tell_how_far_they_are(self, finished: Path) -> None:
        graph = capture(nn.Linear(3, 2), (torch.zeros(2, 3),))
        run = finished / "run"
        jobs = {
            "batch 2": lambda: bench({"net": graph}, batch_sizes=(1, 2), rounds=2, threads=1),
            "verifying, comparing at batch 11": lambda: verify_artifact(run / "model.pt2", run=run),
        }
        for name, job in jobs.items():
            heard: list[tuple[str, float]] = []
            with heard_by(lambda what, share, heard=heard: heard.append((what, share))):
                job()
            assert name in {what for what, _ in heard} and heard[-1][1] == 1
            assert [share for _, share in heard] == sorted(share for _, share in heard)

    def test_rounds_are_told_before_they_begin(self) -> None:
        shares: list[float] = []
        in_turns({"sum": lambda: 1}, Turns(60, rounds=4, settling_seconds=0), on_round=shares.append)
        assert shares == [0, 0.25, 0.5, 0.75]


class TestBar:
    def test_it_shows_what_is_done_and_the_time_that_is_left(self) -> None:
        console = terminal()
        with Bar(console, still=True) as bar:
            bar.show("timing, batch 8", 0.5, "loss 0.1", seconds_left=65.0)
        last = shown(console)
        assert "timing, batch 8" in last and "loss 0.1" in last and "1:05 left" in last and "━" in last

    def test_a_row_fits_a_terminal_of_80_columns(self) -> None:
        console = terminal()
        event = ProgressEvent("finetune", 123, 400, False, step=3, steps=99, loss=0.1, density=0.5, seconds_left=9999.0)
        with ProgressDisplay(console) as display:
            display.show(event)
        rows = [row for row in shown(console).replace("\r", "\n").split("\n") if "finetune 123/400" in row]
        assert rows and "2:46:39 left" in rows[0]

    @pytest.mark.parametrize("environment", [{}, {"TERM": "dumb"}])
    def test_nothing_is_written_where_nobody_watches(self, environment: dict[str, str]) -> None:
        dumb = Console(file=StringIO(), force_terminal=True if environment else None, _environ=environment)
        with Bar(dumb) as bar:
            tell("capturing the model")
            bar.show("timing", 0.5)
        assert shown(dumb) == ""

    def test_what_a_job_tells_inside_is_heard(self) -> None:
        console = terminal()
        with Bar(console, still=True):
            tell("capturing the model")
        assert "capturing the model" in shown(console)

    def test_the_time_left_is_steady_though_estimates_jump(self) -> None:
        steady, left = SteadyTime(), []
        for second in range(100):
            jumping = (100 - second) * (1.5 if second % 2 else 0.7)
            left.append(steady.estimate(jumping, now=float(second)))
        steps = [abs(after - before) for before, after in pairwise(left[10:])]
        assert max(steps) < 12 and left[-1] < 5
