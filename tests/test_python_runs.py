"""Runs that Python keeps as the command line does: the same bits, gone on with, refused where something differs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import run_cli, save_blobs, tiny_mlp
from run_folders import EQUAL, Killed, dying_at, files, hashes
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import l0compress as l0
from l0compress.errors import DataError, InputError, RunError
from l0compress.export.quantize import Int8
from l0compress.pipeline.benching import bench_artifact
from l0compress.pipeline.compress_result import CompressResult
from l0compress.pipeline.exporting import ExportOptions, export_run
from l0compress.training.events import ProgressEvent

NOT_SCORED = (
    "The run was given its data in Python: the scores are those that it measured itself, no form is scored again, and "
    "there are no int8 forms, which are compared on its data."
)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> l0.Data:
    monkeypatch.chdir(tmp_path)
    save_blobs(tmp_path / "blobs.npz")
    return l0.load_data("blobs.npz")


@pytest.fixture
def model() -> nn.Module:
    return tiny_mlp()


def compress(model: nn.Module, data: Any, **changes: Any) -> CompressResult:
    return l0.compress(model, data, **{"target": "params=0.6", "epochs": 3, **changes})


def told(result: Any) -> list[dict[str, Any]]:
    """The events without what a clock said."""
    return [{k: v for k, v in event.row().items() if k not in ("seconds", "seconds_left")} for event in result.history]


def same(one: Any, other: Any) -> bool:
    ours, theirs = one.state(), other.state()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


class TestKept:
    def test_the_result_is_that_of_a_call_that_keeps_nothing(self, model: nn.Module, data: l0.Data) -> None:
        kept, bare = compress(model, data, output="run"), compress(model, data)
        assert kept.folder == Path("run") and bare.folder is None
        assert same(kept.small, bare.small) and kept.plan.kept() == bare.plan.kept()
        assert told(kept) == told(bare)
        assert repr(kept) == repr(bare)
        assert kept.reading == bare.reading and kept.equality == bare.equality
        assert kept.val.to_json() == bare.val.to_json() and kept.budgets == bare.budgets

    def test_the_folder_has_the_files_of_the_command_line(self, model: nn.Module, data: l0.Data) -> None:
        compress(model, data, output="run")
        assert files("run") == {*EQUAL, "log.jsonl"}

    def test_masks_of_single_weights_come_back(self, model: nn.Module, data: l0.Data) -> None:
        settings = l0.FinetuneSettings(granularity="weights", method="magnitude")
        kept, bare = (compress(model, data, settings=settings, output=output) for output in ("run", None))
        assert kept.plan.masks.keys() == bare.plan.masks.keys()
        assert all(torch.equal(kept.plan.masks[name], mask) for name, mask in bare.plan.masks.items())
        assert kept.nonzero_cost == bare.nonzero_cost

    @pytest.mark.slow
    def test_a_run_that_was_killed_goes_on_to_the_same_bits(self, model: nn.Module, data: l0.Data) -> None:
        compress(model, data, output="whole")
        with pytest.raises(Killed):
            compress(model, data, output="run", on_event=dying_at(1))
        assert json.loads(Path("run/run.json").read_text())["status"] == "unfinished"
        compress(model, data, output="run", resume=True)
        same_but_own_name = [name for name in EQUAL if name not in ("run.json", "config.toml")]
        assert [hashes("run")[name] for name in same_but_own_name] == [hashes("whole")[n] for n in same_but_own_name]

    @pytest.mark.slow
    def test_a_finished_run_gives_its_result_without_training(self, model: nn.Module, data: l0.Data) -> None:
        first = compress(model, data, output="run")
        events: list[ProgressEvent] = []
        again = compress(model, data, output="run", resume=True, on_event=events.append)
        assert events == [] and same(first.small, again.small) and told(first) == told(again)

    def test_resume_begins_where_nothing_is(self, model: nn.Module, data: l0.Data) -> None:
        assert compress(model, data, output="run", resume=True).folder == Path("run")

    @pytest.mark.slow
    def test_a_family_is_kept_and_resumed(self, model: nn.Module, data: l0.Data) -> None:
        asked: dict[str, Any] = {"target": "params=0.6,0.4", "epochs": 4, "output": "fam"}
        bare = l0.compress_family(model, data, **{**asked, "output": None})
        with pytest.raises(Killed):
            l0.compress_family(model, data, **asked, on_event=dying_at(4))
        kept = l0.compress_family(model, data, **asked, resume=True)
        assert all(same(ours.small, theirs.small) for ours, theirs in zip(kept.members, bare.members, strict=True))
        assert [m.folder for m in kept.members] == [Path("fam/params=0.6"), Path("fam/params=0.4")]

    @pytest.mark.slow
    def test_a_loss_of_ones_own_goes_with_it(self, model: nn.Module, data: l0.Data) -> None:
        def loss(outputs: Tensor, targets: Tensor) -> Tensor:
            return 2 * cross_entropy(outputs, targets)

        settings = l0.FinetuneSettings(loss=loss)
        with pytest.raises(Killed):
            compress(model, data, settings=settings, output="run", on_event=dying_at(1))
        kept = compress(model, data, settings=settings, output="run", resume=True)
        assert same(kept.small, compress(model, data, settings=settings).small)


class TestRefused:
    @pytest.fixture
    def begun(self, model: nn.Module, data: l0.Data) -> None:
        with pytest.raises(Killed):
            compress(model, data, output="run", on_event=dying_at(1))

    @pytest.mark.usefixtures("begun")
    def test_another_model(self, model: nn.Module, data: l0.Data) -> None:
        with torch.no_grad():
            next(model.parameters()).add_(1)
        with pytest.raises(RunError, match=r"^The model is not the one that run 'run' started with\."):
            compress(model, data, output="run", resume=True)

    @pytest.mark.usefixtures("begun")
    def test_other_data(self, model: nn.Module, data: l0.Data) -> None:
        val = l0.Split(data.val.inputs, data.val.targets.flip(0)) if isinstance(data.val, l0.Split) else None
        assert val is not None
        with pytest.raises(RunError, match=r"^The val part of the data is not the one that run 'run' began with: oth"):
            compress(model, l0.Data(data.train, val, data.test), output="run", resume=True)

    @pytest.mark.slow
    @pytest.mark.usefixtures("begun")
    def test_other_settings_and_targets(self, model: nn.Module, data: l0.Data) -> None:
        with pytest.raises(RunError, match=re.escape("Run 'run' has [training] epochs = 3, but 4 was requested.")):
            compress(model, data, epochs=4, output="run", resume=True)
        with pytest.raises(RunError, match=re.escape("Run 'run' has target = 'params=0.6', but 'params=0.5' was")):
            compress(model, data, target="params=0.5", output="run", resume=True)

    @pytest.mark.slow
    @pytest.mark.usefixtures("begun")
    def test_a_lower_rate_is_taken_as_on_the_command_line(self, model: nn.Module, data: l0.Data) -> None:
        compress(model, data, settings=l0.FinetuneSettings(learning_rate=1e-4), output="run", resume=True)
        assert json.loads(Path("run/run.json").read_text())["about"]["changes"] == {"lr": 1e-4}

    @pytest.mark.usefixtures("begun")
    def test_a_folder_that_is_taken_says_how_to_go_on(self, model: nn.Module, data: l0.Data) -> None:
        way = "To resume it: l0compress.compress(..., output='run', resume=True)"
        with pytest.raises(RunError, match=re.escape(way)):
            compress(model, data, output="run")

    @pytest.mark.usefixtures("begun")
    def test_the_command_line_cannot_go_on_with_what_is_in_memory(self) -> None:
        outcome = run_cli("finetune", "--resume", "run")
        assert outcome.exit_code == 2
        assert "Run 'run' was given its model in Python, and has to be given it again. Nothing was" in outcome.stderr
        assert "l0compress.compress(..., output='run', resume=True)." in outcome.stderr

    def test_resume_of_nothing(self, model: nn.Module, data: l0.Data) -> None:
        with pytest.raises(InputError, match=r"^resume=True, but no output names the run\. Nothing was changed\."):
            compress(model, data, resume=True)


class TestUsed:
    @pytest.mark.slow
    def test_export_verify_and_report_take_it(self, model: nn.Module, data: l0.Data) -> None:
        compress(model, data, output="run")
        assert run_cli("export", "run", "--format", "onnx").exit_code == 0
        assert run_cli("verify", "run/model.onnx", "--against", "run").exit_code == 0
        assert run_cli("report", "run").exit_code == 0
        assert "It was given its model and data in Python" in Path("run/report.html").read_text()

    @pytest.mark.slow
    def test_bench_makes_the_forms_that_need_no_data(self, model: nn.Module, data: l0.Data) -> None:
        compress(model, data, output="run")
        found = bench_artifact(Path("run"), batch_sizes=(1,), threads=1)
        assert list(found.report.file_bytes) == ["dense", "small", "small bundle"]
        assert found.notes == (NOT_SCORED,)
        assert run_cli("export", "run", "--format", "onnx").exit_code == 0
        against = bench_artifact(Path("run/model.onnx"), against=Path("run"), batch_sizes=(1,), threads=1)
        assert list(against.report.file_bytes) == ["dense", "small"] and against.verification is not None
        assert against.notes == (NOT_SCORED,)

    def test_what_needs_the_data_says_so(self, model: nn.Module, data: l0.Data) -> None:
        compress(model, data, output="run")
        with pytest.raises(DataError, match=r"^Run 'run' was given its data in Python, which no file names\."):
            export_run(Path("run"), options=ExportOptions(rounding=Int8()))

    @pytest.mark.slow
    def test_named_data_are_named_in_the_folder(self, model: nn.Module, data: l0.Data) -> None:
        del data
        compress(model, "blobs.npz", output="run")
        assert 'data = "blobs.npz"' in Path("run/config.toml").read_text()
        assert run_cli("export", "run", "--format", "onnx", "--quantize", "int8").exit_code == 0
        again = run_cli("finetune", "--config", "run/config.toml", "-o", "again")
        assert again.exit_code == 0, again.stderr
        assert hashes("again")["plan.json"] == hashes("run")["plan.json"]


def test_progress_prints_what_the_command_line_prints(
    model: nn.Module, data: l0.Data, capsys: pytest.CaptureFixture[str]
) -> None:
    events: list[ProgressEvent] = []
    compress(model, data, progress=True, on_event=events.append)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].split()[:2] == ["stage", "epoch"]
    assert [line.split()[1] for line in lines if line.startswith("finetune")] == ["2/3", "3/3"]
    assert len([event for event in events if event.epoch_done]) == 4
