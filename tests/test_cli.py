"""The command line as its users meet it: from a model file to a table, exit codes, and what is on which stream."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import printed_json, run_cli, save_blobs, save_pt2, tiny_mlp, without_data
from torch import nn

from l0compress.cli.progress import ProgressDisplay
from l0compress.cli.render import messages
from l0compress.export.session import OnnxSession
from l0compress.loading import load_pt2
from l0compress.pipeline.config import read_config
from l0compress.pipeline.durable import sha256_of
from l0compress.pipeline.run_manifest import read_manifest
from l0compress.training.events import ProgressEvent

COUNTS = {"train": 120, "test": 60}
COMMANDS = ("inspect", "finetune", "export", "verify", "bench", "sweep")


def x(num_samples: int) -> torch.Tensor:
    return torch.randn(num_samples, 8, generator=torch.Generator().manual_seed(1))


class Reader(nn.Module):
    """Sequences of any length, by their mean."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.inner(x)).mean(1))


class TestInspect:
    def test_it_lists_groups_costs_and_what_is_frozen(self, finished: Path) -> None:
        found = printed_json("inspect", finished / "mlp.pt2")
        weights, outputs = 8 * 6 + 6 * 3, 6 + 3
        assert found["cost"] == {
            "params": weights + outputs,
            "macs": weights,
            "bytes": 4 * 75,
            "int8_bytes": weights + (5 + 4) * outputs,
        }
        assert {(group["name"], group["kind"], group["moves"]) for group in found["groups"]} == {
            ("0", "inputs", 8),
            ("0", "channels", 6),
        }
        assert {(place["where"], place["dim"]) for place in found["frozen"]} == {("2.weight", 0), ("2.bias", 0)}
        assert found["smallest"]["params"] == 1 + 1 + 3 + 3

    def test_for_people_it_names_reason_and_next_step(self, finished: Path) -> None:
        printed = run_cli("inspect", finished / "mlp.pt2").stdout
        assert "2 groups with 14 moves: what can be removed" in printed
        assert "it is part of the model's output" in printed
        model = finished / "mlp.pt2"
        assert printed.splitlines()[-1] == f"Next: l0compress finetune {model} --data DATA --target macs=0.5"

    def test_weights_are_inspected_with_a_factory_and_data(self, finished: Path, tmp_path: Path) -> None:
        torch.save(tiny_mlp().state_dict(), tmp_path / "mlp.pt")
        how = ("--factory", "conftest:tiny_mlp", "--data", finished / "blobs.npz")
        by_factory = printed_json("inspect", tmp_path / "mlp.pt", *how)
        assert by_factory["groups"] == printed_json("inspect", finished / "mlp.pt2")["groups"]


class TestFinetune:
    def test_it_leaves_a_complete_run_folder_and_nothing_beside_it(self, finished: Path) -> None:
        assert {path.name for path in finished.iterdir()} == {"mlp.pt2", "blobs.npz", "run"}
        assert {path.name for path in (finished / "run").iterdir()} == {
            "run.json", "config.toml", "dense.pt2", "masked.pt2", "small.pt2", "plan.json", "metrics.jsonl",
            "log.jsonl", "result.json", "model.onnx", "model.pt2",
        }  # fmt: skip

    def test_the_budget_is_kept(self, finished: Path) -> None:
        result = json.loads((finished / "run/result.json").read_text())
        assert result["target"]["limit"] == int(0.6 * 75)
        assert result["small"]["params"] == result["target"]["reached"] <= result["target"]["limit"]
        weights = load_pt2(finished / "run/small.pt2").parameters()
        assert sum(weight.numel() for weight in weights) == result["small"]["params"]

    def test_the_dense_model_is_kept_as_it_was_given(self, finished: Path) -> None:
        kept, given = (load_pt2(finished / name).module() for name in ("run/dense.pt2", "mlp.pt2"))
        assert torch.equal(kept(x(4)), given(x(4)))

    def test_the_small_model_is_the_masked_one(self, finished: Path) -> None:
        small, masked = (load_pt2(finished / f"run/{name}.pt2").module() for name in ("small", "masked"))
        torch.testing.assert_close(small(x(7)), masked(x(7)), rtol=1e-5, atol=1e-6)

    def test_metrics_have_a_line_an_epoch(self, finished: Path) -> None:
        rows = [json.loads(line) for line in (finished / "run/metrics.jsonl").read_text().splitlines()]
        assert [(row["stage"], row["epoch"]) for row in rows] == [
            ("dense", 0),
            ("gates", 1),
            ("finetune", 2),
            ("finetune", 3),
        ]

    def test_the_example_inputs_do_not_carry_the_training_data_along(self, finished: Path) -> None:
        for name in ("dense", "masked", "small", "model"):
            args, _ = load_pt2(finished / f"run/{name}.pt2").example_inputs
            assert args[0].untyped_storage().nbytes() == args[0].numel() * 4 == 2 * 8 * 4

    def test_the_same_seed_gives_the_same_run(self, finished: Path, tmp_path: Path) -> None:
        arguments = ("--data", finished / "blobs.npz", "--target", "params=0.6", "--epochs", "3")
        again = printed_json("finetune", finished / "mlp.pt2", *arguments, "-o", tmp_path / "again")
        stored = json.loads((finished / "run/result.json").read_text())
        assert {**again, "run": ""} == {**stored, "run": "", "warnings": []}
        states = [load_pt2(folder / "small.pt2").state_dict for folder in (finished / "run", tmp_path / "again")]
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])

    @pytest.mark.mostly_slow
    @pytest.mark.parametrize("flags", [(), ("--fixed",)])
    def test_sequences_are_of_any_length_unless_they_are_fixed(self, tmp_path: Path, flags: tuple[str, ...]) -> None:
        torch.save(Reader().state_dict(), tmp_path / "reader.pt")
        save_blobs(
            tmp_path / "x.npz",
            **{f"x_{part}": x(count * 3).view(count, 6, 4).numpy() for part, count in COUNTS.items()},
        )
        how = ("--factory", "test_cli:Reader", "--data", tmp_path / "x.npz", "--epochs", "2", "--target", "params=0.6")
        run = tmp_path / "run"
        assert run_cli("finetune", tmp_path / "reader.pt", *how, *flags, "-o", run).exit_code == 0
        assert run_cli("export", run).exit_code == 0
        (taken,) = OnnxSession(run / "model.onnx").inputs
        assert taken.shape == ((None, 6, 4) if flags else (None, None, 4))
        assert read_config(run / "config.toml")["fixed"] is bool(flags)

    @pytest.mark.slow
    def test_progress_goes_to_standard_error_and_the_table_to_standard_output(
        self, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        arguments = ("--data", finished / "blobs.npz", "--target", "params=0.6", "--epochs", "3")
        outcome = run_cli("finetune", finished / "mlp.pt2", *arguments)
        assert re.search(r"^gates +1/3 +\d", outcome.stderr, re.MULTILINE)
        assert re.search(r"^finetune +3/3 +\d", outcome.stderr, re.MULTILINE)
        assert "Dense against small" in outcome.stdout and "test accuracy" in outcome.stdout
        assert re.search(r"Budget: at most 45 parameters; \d\d were used \(\d+\.\d%\)\.", outcome.stdout)
        (run,) = Path("runs").iterdir()
        assert re.fullmatch(r"\d{8}-\d{6}-mlp", run.name)
        assert run_cli("export").exit_code == 0
        assert (run / "model.onnx").is_file()

    @pytest.mark.slow
    def test_a_loss_of_the_user_and_regression(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        save_blobs(Path("blobs.npz"), y_train=torch.linspace(0, 1, 120).numpy(), y_test=torch.zeros(60).numpy())
        save_pt2(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 1)), (torch.zeros(2, 8),), Path("net.pt2"))
        Path("losses.py").write_text(
            "def absolute(outputs, targets):\n    return (outputs[:, 0] - targets).abs().mean()\n"
        )
        for loss in ("mse", "losses:absolute"):
            arguments = ("--data", "blobs.npz", "--target", "macs=0.6", "--epochs", "3", "--loss", loss)
            result = printed_json("finetune", "net.pt2", *arguments, "-o", f"run-{loss[:3]}")
            assert result["test"]["small"]["metric_name"] == "loss"

    @pytest.mark.mostly_slow
    @pytest.mark.parametrize(
        "flags", [("--optimizer", "sgd"), ("--clip", "0"), ("--batch-size", "16", "--lr", "0.001")]
    )
    def test_training_flags_arrive(self, finished: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
        arguments = (
            "--data",
            finished / "blobs.npz",
            "--target",
            "params=0.6",
            "--epochs",
            "2",
            "-o",
            tmp_path / "run",
        )
        printed_json("finetune", finished / "mlp.pt2", *arguments, *flags)
        settings = read_config(tmp_path / "run/config.toml")
        names = {"--optimizer": "optimizer", "--clip": "clip", "--batch-size": "batch_size", "--lr": "lr"}
        for flag, value in zip(flags[::2], flags[1::2], strict=True):
            assert str(settings[names[flag]]) == {"0": "0.0"}.get(value, value)


class TestExport:
    @pytest.mark.parametrize("format", ["onnx", "pt2"])
    def test_the_artifact_computes_what_the_masked_model_computes(self, finished: Path, format: str) -> None:
        masked = load_pt2(finished / "run/masked.pt2").module()
        path = finished / f"run/model.{format}"
        artifact = OnnxSession(path) if format == "onnx" else load_pt2(path).module()
        answer = artifact(x(5))
        answer = answer["output_0"] if format == "onnx" else answer
        torch.testing.assert_close(answer, masked(x(5)), rtol=1e-5, atol=1e-6)

    @pytest.mark.slow
    def test_a_bundle_without_zeros_says_so_and_shows_no_empty_table(self, finished: Path, tmp_path: Path) -> None:
        printed = run_cli("export", finished / "run", "--format", "bundle", "-o", tmp_path / "net.l0c").stdout
        assert "nothing runs sparse, because no float32 weight with at least 256 elements has 60% zeros" in printed
        assert "Sparse layers" not in printed
        assert "Sparse layers" not in run_cli("bench", tmp_path / "net.l0c", "--batch", "1").stdout

    def test_it_goes_where_it_is_told(self, finished: Path, tmp_path: Path) -> None:
        exported = printed_json("export", finished / "run", "-o", tmp_path / "net.onnx")
        assert exported["path"] == str(tmp_path / "net.onnx")
        assert exported["size_bytes"] == (tmp_path / "net.onnx").stat().st_size
        assert exported["equality"]["equal"] is True

    @pytest.mark.slow
    def test_a_small_model_that_is_not_equal_is_refused_and_nothing_is_written(
        self, finished: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(finished / "run", tmp_path / "run")
        save_pt2(
            nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3)), (torch.zeros(2, 8),), tmp_path / "run/small.pt2"
        )
        manifest = read_manifest(tmp_path / "run")
        manifest.files["small.pt2"] = sha256_of(tmp_path / "run/small.pt2")
        manifest.write(tmp_path / "run")
        before = sorted(tmp_path.rglob("*"))
        outcome = run_cli("export", tmp_path / "run", "-o", tmp_path / "net.onnx")
        assert outcome.exit_code == 1 and outcome.stdout == ""
        assert outcome.stderr.startswith("Error: The two models are not equal: output 'output_0' differs at index ")
        assert sorted(tmp_path.rglob("*")) == before


class TestVerify:
    @pytest.mark.parametrize("name", ["model.onnx", "model.pt2", "masked.pt2"])
    def test_equal_models_pass(self, finished: Path, name: str) -> None:
        verified = printed_json("verify", finished / "run" / name, "--against", finished / "run")
        assert verified["equal"] is True and verified["max_relative"] < 1e-5

    def test_another_model_fails_with_exit_code_1(self, finished: Path) -> None:
        outcome = run_cli("verify", finished / "mlp.pt2", "--against", finished / "run", "--json")
        assert outcome.exit_code == 1 and outcome.stdout == ""
        assert outcome.stderr.startswith("Error: The two models are not equal: ")


@pytest.mark.slow
class TestBench:
    def test_against_the_run(self, finished: Path) -> None:
        arguments = ("bench", finished / "run/model.onnx", "--against", finished / "run", "--batch", "1,2")
        measured = printed_json(*arguments)
        assert {(timing["name"], timing["batch_size"]) for timing in measured["bench"]["timings"]} == {
            (name, size) for name in ("dense", "dense int8", "small") for size in (1, 2)
        }
        assert measured["bench"]["threads"] == 2
        printed = run_cli(*arguments).stdout
        for heading in ("test accuracy", "params", "MACs", "file", "Median milliseconds", "batch 2", "memory"):
            assert heading in printed
        assert "2 threads" in printed and "Small equals the masked dense model within" in printed

    def test_a_run_is_timed_in_every_form(self, finished: Path, tmp_path: Path) -> None:
        run = Path(shutil.copytree(finished / "run", tmp_path / "run"))
        arguments = ("bench", run, "--batch", "1,3", "--threads", "1")
        measured = printed_json(*arguments, "--plot", tmp_path / "forms.svg")
        assert json.loads((run / "bench.json").read_text())["bench"] == measured["bench"]
        names = ["dense", "dense int8", "small", "small int8", "small bundle"]
        candidates = {candidate["name"]: candidate for candidate in measured["bench"]["candidates"]}
        assert list(candidates) == names
        assert all(candidate["memory_bytes"] > 0 for candidate in candidates.values())
        assert set(measured["int8_metrics"]) == {"dense int8", "small int8"}
        drawing = (tmp_path / "forms.svg").read_text()
        assert all(f"<!-- {text} -->" in drawing for text in (*names, "batch 1", "batch 3"))
        printed = run_cli(*arguments).stdout
        rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in printed.splitlines() if "│" in line]
        assert [row[0] for row in rows] == names * 3
        assert "score: test accuracy." in printed and all("—" not in row for row in rows)
        assert printed.splitlines()[-1] == f"Next: l0compress report {run}"

    def test_an_int8_artifact_is_compared_as_what_it_is(self, finished: Path, tmp_path: Path) -> None:
        printed_json("export", finished / "run", "--quantize", "int8", "-o", tmp_path / "net.onnx")
        measured = printed_json("bench", tmp_path / "net.onnx", "--against", finished / "run", "--batch", "1")
        names = [candidate["name"] for candidate in measured["bench"]["candidates"]]
        assert names == ["dense", "dense int8", "small int8"]
        assert set(measured["int8_metrics"]) == {"dense int8", "small int8"}

    def test_a_pt2_file_has_no_int8_form_and_needs_no_data(self, finished: Path, tmp_path: Path) -> None:
        run = without_data(finished / "run", tmp_path / "run")
        arguments = ("bench", finished / "run/model.pt2", "--against", run, "--batch", "1")
        measured = printed_json(*arguments)
        assert [candidate["name"] for candidate in measured["bench"]["candidates"]] == ["dense", "small"]
        assert measured["notes"] == ["Only ONNX files have an int8 form; give an .onnx artifact to compare with it."]

    def test_alone_and_against_another_artifact(self, finished: Path) -> None:
        assert "model.onnx" in run_cli("bench", finished / "run/model.onnx", "--batch", "1").stdout
        arguments = (
            "bench",
            finished / "run/model.pt2",
            "--against",
            finished / "mlp.pt2",
            "--batch",
            "1",
            "--threads",
            "1",
        )
        candidates = printed_json(*arguments)["bench"]["candidates"]
        assert {one["name"] for one in candidates} == {str(finished / "run/model.pt2"), str(finished / "mlp.pt2")}
        assert all(one["memory_bytes"] > 0 for one in candidates)

    def test_an_artifact_of_another_run_is_refused(self, finished: Path) -> None:
        outcome = run_cli("bench", finished / "mlp.pt2", "--against", finished / "run")
        assert outcome.exit_code == 1 and outcome.stderr.startswith("Error: The two models are not equal: ")


def l0compress(*arguments: str | Path, cwd: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "l0compress", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=-1, stderr=-1, text=True, preexec_fn=_restore_interrupt
    )


def _restore_interrupt() -> None:
    """A shell starts its background jobs with SIGINT ignored, and they hand that on; at a terminal it is not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class TestProcess:
    def test_help_and_version(self, tmp_path: Path) -> None:
        process = l0compress("--version", cwd=tmp_path)
        out, err = process.communicate()
        assert err == "" and process.returncode == 0
        lines = out.splitlines()
        assert lines[:2] == ["l0compress 0.1.0", f"python {platform.python_version()}"]
        told = dict(line.split(" ", 1) for line in lines)
        imported = {"torch": torch, "numpy": np, "onnx": onnx, "onnxruntime": onnxruntime}
        assert {name: told[name] for name in imported} == {name: each.__version__ for name, each in imported.items()}
        assert re.search(rf", \d+ cores?, {platform.system()} {platform.machine()}$", told["machine"])
        helped = run_cli("--help").stdout
        assert all(command in helped for command in COMMANDS)
        for command in COMMANDS:
            assert run_cli(command, "--help").exit_code == 0

    @pytest.mark.slow
    def test_json_is_all_that_is_on_standard_output(self, finished: Path) -> None:
        process = l0compress("export", "run", "-o", "again.onnx", "--json", cwd=finished)
        out, err = process.communicate()
        (finished / "again.onnx").unlink()
        assert json.loads(out)["path"] == "again.onnx"
        assert err == "" and process.returncode == 0

    def test_unknown_flags_and_formats_exit_with_2(self) -> None:
        for arguments in (("finetune", "--fast"), ("export", "--format", "tflite"), ("compress",)):
            outcome = run_cli(*arguments)
            assert outcome.exit_code == 2 and outcome.stdout == ""

    @pytest.mark.parametrize(
        ("name", "format"), [("small.pt2", "pt2"), ("masked.pt2", "pt2"), ("run.json", "onnx"), ("plan.json", "bundle")]
    )
    def test_a_run_is_not_written_over(self, finished: Path, name: str, format: str) -> None:
        before = (finished / "run" / name).read_bytes()
        for path in (finished / "run" / name, finished / "run" / ".." / "run" / name):
            outcome = run_cli("export", str(finished / "run"), "--format", format, "-o", str(path))
            assert outcome.exit_code == 2 and "itself, which needs it" in outcome.stderr, outcome.stderr
        assert (finished / "run" / name).read_bytes() == before

    @pytest.mark.parametrize(
        ("number", "status", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
    )
    @pytest.mark.slow
    def test_a_signal_leaves_nothing_half_written(
        self, finished: Path, tmp_path: Path, number: int, status: int, said: str
    ) -> None:
        process = l0compress("export", finished / "run", "--format", "bundle", "-o", "small.l0c", cwd=tmp_path)
        while process.poll() is None and not list(tmp_path.iterdir()):
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out) == (status, ""), err
        assert err.splitlines()[-1] == f"Error: {said}; nothing half-written is left."
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.slow
    def test_ctrl_c_exits_with_130_and_says_how_to_go_on(self, finished: Path, tmp_path: Path) -> None:
        arguments = ("--data", finished / "blobs.npz", "--target", "params=0.6", "--epochs", "100000")
        process = l0compress("finetune", finished / "mlp.pt2", *arguments, "-o", "some/run", cwd=tmp_path)
        while process.poll() is None and not any(path.stat().st_size for path in tmp_path.rglob("metrics.jsonl")):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 130, err
        assert out == "" and re.fullmatch(
            r"Error: Interrupted\. The run is kept in 'some/run' at (step \d+ of \d+ in|the end of) epoch \d+ of "
            r"100000\. "
            r"Resume with: l0compress finetune --resume some/run",
            err.splitlines()[-1],
        )


def test_progress_that_nobody_watches_is_one_line_an_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay(messages()) as display:
        display.show(ProgressEvent("gates", 1, 4, epoch_done=False, loss=9.0))
        display.show(
            ProgressEvent(
                "gates", 1, 4, loss=0.5, metric=0.9, density=0.75, violation=0.25, multiplier=1.5, seconds_left=3725.0
            )
        )
        display.show(ProgressEvent("finetune", 2, 4, loss=0.25, metric=None, density=0.5, seconds_left=65.0))
    assert capsys.readouterr().err.splitlines() == [
        "stage       epoch      loss  accuracy  density  violation  multiplier     left",
        "gates         1/4    0.5000    0.9000    0.750     +0.250       1.500  1:02:05",
        "finetune      2/4    0.2500         -    0.500          -           -     1:05",
    ]
