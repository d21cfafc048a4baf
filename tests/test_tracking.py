"""Curves in trackers: what metrics.jsonl says, once, however often the run was stopped; none of them can end a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import get_available_trackers
from conftest import run_cli
from run_folders import Killed, dying_at, hashes, request

import l0compress as l0
from l0compress.errors import InputError
from l0compress.pipeline.family_run import finetune_family_run
from l0compress.pipeline.options import TRACKERS
from l0compress.pipeline.run_manifest import read_manifest
from l0compress.pipeline.training_run import finetune_run, resume_run

LINES = "own_trackers:Lines"
pytestmark = pytest.mark.usefixtures("folder")


def lines(run: str | Path) -> list[list[Any]]:
    (path,) = Path(run).glob("*.lines")
    return [json.loads(line) for line in path.read_text().splitlines()]


def curve(said: list[list[Any]], tag: str) -> dict[int, float]:
    """What was logged under a tag, by step: the last word counts."""
    return {step: values[tag] for step, *rest in said for values in rest if isinstance(step, int) and tag in values}


def at_epochs(run: str, name: str) -> dict[int, float]:
    rows = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    return {max(row["epoch"] - 1, 0) * row["steps"] + row["step"]: row[name] for row in rows}


@pytest.mark.slow
def test_a_run_is_logged_as_its_metrics_have_it_and_comes_out_the_same() -> None:
    summary = finetune_run(request("run", track=LINES))
    said = lines("run")
    assert said[0][0] == "settings" and said[-1] == ["finish"]
    settings = said[0][1]
    assert (settings["epochs"], settings["target"], settings["track"]) == (3, "params=0.6", LINES)
    assert [step for step, *_ in said].count("settings") == 1
    assert curve(said, "val/accuracy") == at_epochs("run", "metric")
    learned = {step: loss for step, loss in at_epochs("run", "loss").items() if step}
    assert curve(said, "train/epoch_loss") == learned
    use, violations = curve(said, "budget_use"), at_epochs("run", "violation")
    assert use[6] == math.exp(violations[6])
    target, result = summary.result["target"], summary.result
    assert said[-2][1]["budget_use/params"] == target["reached"] / target["limit"] <= 1
    assert said[-2][1]["test/small/accuracy"] == result["test"]["small"]["metric"]
    finetune_run(request("bare"))
    named = [name for name in hashes("run") if name not in ("run.json", "config.toml")]
    assert [hashes("run")[name] for name in named] == [hashes("bare")[name] for name in named]


@pytest.mark.slow
def test_a_run_that_goes_on_adds_to_the_same_log() -> None:
    with pytest.raises(Killed):
        finetune_run(request("run", track=LINES), on_event=dying_at(2))
    before = lines("run")
    outcome = run_cli("finetune", "--resume", "run")
    assert outcome.exit_code == 0, outcome.stderr
    said = lines("run")
    assert said[: len(before)] == before
    assert [step for step, *_ in said].count("settings") == 1
    assert curve(said, "val/accuracy") == at_epochs("run", "metric")


def test_a_run_may_go_on_with_a_tracker_that_it_did_not_begin_with() -> None:
    with pytest.raises(Killed):
        finetune_run(request("run"), on_event=dying_at(2))
    resume_run(Path("run"), given={"track": LINES})
    assert lines("run")[0][0] == "settings" and max(curve(lines("run"), "val/accuracy")) == 18


def test_each_member_of_a_family_has_curves_of_its_own() -> None:
    finetune_family_run(request("run", target="params=0.8,0.6", epochs=4, track=LINES))
    tags = {tag for _, *rest in lines("run") for values in rest if "epochs" not in values for tag in values}
    assert {f"params-{share}/{name}" for share in (0.8, 0.6) for name in ("density", "budget_use/params")} <= tags
    assert not [tag for tag in tags if "=" in tag]


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on() -> None:
    warned = "Tracker 'own_trackers:Failing' failed (ConnectionError: the server is gone). The run goes on without it."
    outcome = run_cli(
        "finetune", "mlp.pt2", "--data", "blobs.npz", "--target", "params=0.6", "--epochs", "3", "-o", "run",
        "--track", "own_trackers:Failing", "--track", LINES,
    )  # fmt: skip
    assert outcome.exit_code == 0 and " ".join(outcome.stderr.split()).count(warned) == 1
    assert read_manifest(Path("run")).about["trackers"] == {LINES: "", "own_trackers:Failing": ""}
    # Both write into one file here.
    assert [step for step, *_ in lines("run")].count("settings") == 2 and lines("run")[-1] == ["finish"]


def test_what_is_no_tracker_is_said() -> None:
    with pytest.warns(RuntimeWarning, match="returned str, which is not a GeneralTracker of Accelerate's"):
        finetune_run(request("run", track="own_trackers:not_a_tracker"))


def test_a_call_that_keeps_no_run_has_a_folder_for_its_log() -> None:
    l0.compress(l0.load_model("mlp.pt2"), "blobs.npz", target="params=0.6", epochs=2, track=[LINES])
    (folder,) = Path("runs").iterdir()
    said = lines(folder)
    assert said[0][1]["gates.share"] == 1 / 3 and "budget_use/params" in said[-2][1]


class TestRefused:
    def test_one_that_is_not_installed(self) -> None:
        there = [str(kind) for kind in get_available_trackers()]
        missing = next((name for name in TRACKERS if name not in there), None)
        if missing is None:
            pytest.skip("all of them are installed")
        with pytest.raises(InputError) as refused:
            finetune_run(request("run", track=missing))
        assert str(refused.value) == (
            f"--track {missing} needs {missing}, which is not installed. Nothing was changed. Install it: pip install "
            f"{missing}."
        )
        assert not Path("run").exists()

    @pytest.mark.slow
    def test_one_that_nobody_knows(self) -> None:
        with pytest.raises(InputError) as refused:
            l0.compress(l0.load_model("mlp.pt2"), "blobs.npz", target="params=0.6", track="tensorbord")
        assert str(refused.value) == (
            "--track tensorbord: expected one of tensorboard, mlflow, wandb, or PACKAGE.MODULE:FUNCTION. Nothing was "
            "changed. Did you mean 'tensorboard'?"
        )
        outcome = run_cli("finetune", "mlp.pt2", "--data", "blobs.npz", "--target", "params=0.6", "--track", "wand")
        assert outcome.exit_code == 2 and "Did you mean 'wandb'?" in outcome.stderr


def test_tensorboard_has_each_step_once() -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with pytest.raises(Killed):
        finetune_run(request("run", track="tensorboard", checkpoint_every=100), on_event=dying_at(3))
    # It goes on from the end of the gates' phase, and what was logged since then comes again.
    assert read_manifest(Path("run")).position == "the end of epoch 1 of 3"
    resume_run(Path("run"))
    events = reading.EventAccumulator("run/tensorboard").Reload()
    scores = [(each.step, pytest.approx(each.value)) for each in events.Scalars("val/accuracy")]
    assert scores == list(at_epochs("run", "metric").items())
    steps = [each.step for each in events.Scalars("density")]
    assert steps == sorted(set(steps))
