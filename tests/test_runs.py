"""The run folder: whole at any moment, held by one process, checked when it is read."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import run_cli, save_blobs, save_pt2, tiny_mlp
from run_folders import EQUAL, Killed, dying_at, files, hashes, hashes_of_all, request
from safetensors import safe_open

import l0compress as l0
from l0compress.errors import DivergedError, InputError, RunError
from l0compress.pipeline.durable import sha256_of
from l0compress.pipeline.holding import check_new
from l0compress.pipeline.run_manifest import read_manifest
from l0compress.pipeline.run_result import measured
from l0compress.pipeline.runs import newest_run, newest_unfinished, open_run
from l0compress.pipeline.training_run import finetune_run, resume_run
from l0compress.training.events import ProgressEvent


class TestFolder:
    @pytest.mark.usefixtures("whole")
    def test_a_finished_run_holds_what_is_documented_and_nothing_else(self) -> None:
        assert files("whole") == {*EQUAL, "log.jsonl"}

    @pytest.mark.usefixtures("folder")
    @pytest.mark.parametrize("make", [os.mkfifo, lambda name: Path(name).symlink_to("nowhere")])
    def test_what_is_no_folder_is_refused_before_anything_is_read(self, make) -> None:
        make("taken")
        with pytest.raises(RunError, match=r"^'taken' already exists\. Nothing was written\."):
            check_new(Path("taken"))

    def test_the_manifest_has_the_checksum_of_every_file_but_the_log(self, whole: dict[str, str]) -> None:
        manifest = read_manifest(Path("whole"))
        assert manifest.finished
        assert manifest.files == {name: digest for name, digest in whole.items() if name != "run.json"}

    @pytest.mark.usefixtures("whole")
    def test_metrics_hold_no_time_and_the_log_does(self) -> None:
        rows = [json.loads(line) for line in Path("whole/metrics.jsonl").read_text().splitlines()]
        assert not {"seconds", "seconds_left"} & set().union(*rows)
        log = [json.loads(line) for line in Path("whole/log.jsonl").read_text().splitlines()]
        assert [line["what"] for line in log] == ["began", *["epoch"] * 2, "decided", *["epoch"] * 2, "finished"]
        assert all("time" in line for line in log)

    def test_an_unfinished_run_is_readable_without_us(self, unfinished: Path) -> None:
        manifest = json.loads((unfinished / "run.json").read_text())
        assert manifest["status"] == "unfinished" and manifest["position"] == "step 6 of 6 in epoch 2 of 3"
        state = json.loads((unfinished / f"{manifest['state']}.json").read_text())
        assert state["stage"] == "finetune" and [row["stage"] for row in state["history"]] == ["gates"]
        with safe_open(unfinished / f"{manifest['state']}.safetensors", framework="numpy") as tensors:
            assert {"network.0.weight", "best.0.weight", "random.torch"} <= set(tensors.keys())

    @pytest.mark.slow
    @pytest.mark.usefixtures("folder")
    def test_the_newest_finished_and_the_newest_unfinished_run(self) -> None:
        for name in ("runs/a", "runs/b"):
            finetune_run(request(name))
        with pytest.raises(Killed):
            finetune_run(request("runs/c"), on_event=dying_at(1))
        assert (newest_run(), newest_unfinished()) == (Path("runs/b"), Path("runs/c"))


class TestReaders:
    @pytest.mark.parametrize("name", EQUAL)
    @pytest.mark.usefixtures("whole")
    def test_a_flipped_bit_in_any_file_is_found(self, name: str) -> None:
        path = Path("whole", name)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(RunError, match=r"is damaged or was modified.* Nothing was changed\."):
            open_run(Path("whole"))

    @pytest.mark.usefixtures("whole")
    def test_a_missing_file_is_named(self) -> None:
        Path("whole/small.pt2").unlink()
        with pytest.raises(RunError, match=r"Cannot read '.*small\.pt2' of run 'whole': No such file"):
            open_run(Path("whole"))

    @pytest.mark.usefixtures("whole")
    def test_a_run_of_an_earlier_version_reads_as_one_of_today(self) -> None:
        path, written = Path("whole/result.json"), open_run(Path("whole"))
        path.write_text(path.read_text().replace('"bytes"', '"size_bytes"'))
        manifest = read_manifest(Path("whole"))
        replace(manifest, files={**manifest.files, path.name: sha256_of(path)}).write(Path("whole"))
        old = open_run(Path("whole"))
        assert "size_bytes" in path.read_text() and old.result == written.result
        assert [measured(old.result, name).cost.bytes for name in ("dense", "small")] == [
            written.result[name]["bytes"] for name in ("dense", "small")
        ]

    @pytest.mark.usefixtures("whole")
    def test_load_takes_a_run_for_its_small_model(self) -> None:
        x = torch.randn(3, 8)
        with torch.no_grad():
            small, masked = l0.load("whole")(x), l0.load("whole/masked.pt2")(x)
        torch.testing.assert_close(small, masked)
        params = sum(parameter.numel() for parameter in l0.load("whole").parameters())
        assert params == open_run(Path("whole")).result["small"]["params"]

    @pytest.mark.usefixtures("unfinished")
    def test_an_unfinished_run_is_refused_with_the_way_to_finish_it(self) -> None:
        with pytest.raises(RunError, match=r"^Run 'run' is not finished: .* l0compress finetune --resume run$"):
            l0.load("run")
        for arguments in (("export", "run"), ("verify", "mlp.pt2", "--against", "run"),
                          ("bench", "mlp.pt2", "--against", "run")):  # fmt: skip
            outcome = run_cli(*arguments)
            assert outcome.exit_code == 2
            assert outcome.stderr == (
                "Error: Run 'run' is not finished: its last state is step 6 of 6 in epoch 2 of 3. Nothing was changed. "
                "Unless it is running right now, finish it with: l0compress finetune --resume run\n"
            )

    def test_a_damaged_state_is_refused_by_resume(self, unfinished: Path) -> None:
        (state,) = (unfinished / "state").glob("*.safetensors")
        content = bytearray(state.read_bytes())
        content[-1] ^= 1
        state.write_bytes(content)
        with pytest.raises(RunError, match="is damaged or was modified"):
            resume_run(unfinished)


class TestResume:
    def test_the_end_is_that_of_a_run_that_nobody_touched(self, whole: dict[str, str], unfinished: Path) -> None:
        told: list[ProgressEvent] = []
        summary = resume_run(unfinished, on_event=told.append)
        assert hashes("run") == whole and files("run") == files("whole")
        assert summary.result == json.loads(Path("whole/result.json").read_text())
        assert (told[0].stage, told[0].epoch, told[0].step, told[0].steps) == ("resumed", 2, 6, 6)

    @pytest.mark.usefixtures("unfinished")
    def test_from_its_command_alone(self, whole: dict[str, str]) -> None:
        outcome = run_cli("finetune", "--resume", "run")
        assert outcome.exit_code == 0 and hashes("run") == whole
        assert "resumed in epoch 2 of 3, after step 6 of 6" in outcome.stderr

    @pytest.mark.slow
    @pytest.mark.usefixtures("unfinished")
    def test_with_the_flags_that_it_began_with(self, whole: dict[str, str]) -> None:
        flags = ("finetune", "mlp.pt2", "--data", "blobs.npz", "--target", "params=0.6", "--epochs", "3", "--resume")
        every = ("--checkpoint-every", "2")
        assert run_cli(*flags, *every, "-o", "run").exit_code == 0
        assert run_cli(*flags, *every, "-o", "new").exit_code == 0
        assert hashes("run") == hashes("new") == whole

    def test_a_finished_run_gives_its_result_again(self, whole: dict[str, str]) -> None:
        summary = resume_run(Path("whole"))
        assert summary.result == open_run(Path("whole")).result and hashes("whole") == whole

    def test_other_settings_than_it_began_with_are_refused(self, unfinished: Path) -> None:
        before = hashes_of_all(unfinished)
        outcome = run_cli("finetune", "--resume", "run", "--seed", "4")
        assert outcome.exit_code == 2
        assert outcome.stderr == (
            "Error: Run 'run' has seed = 0, but 4 was requested. Nothing was changed. Resume it without that, or "
            "start a new run; lr, clip, checkpoint_every, track, shard may change.\n"
        )
        assert hashes_of_all(unfinished) == before

    def test_a_lower_rate_may_be_asked_for_and_is_noted(self, unfinished: Path) -> None:
        resume_run(unfinished, given={"lr": 1e-4})
        assert read_manifest(unfinished).about["changes"] == {"lr": 1e-4}

    def test_another_model_or_other_data_are_refused(self, unfinished: Path) -> None:
        save_blobs(Path("blobs.npz"), x_train=torch.zeros(120, 8).numpy())
        with pytest.raises(RunError, match=r"The train part of the data is not the one .*: other values"):
            resume_run(unfinished)
        save_blobs(Path("blobs.npz"))
        model = tiny_mlp()
        with torch.no_grad():
            model[0].bias.add_(1.0)
        save_pt2(model, (torch.zeros(2, 8),), Path("mlp.pt2"))
        with pytest.raises(RunError, match="The model is not the one that run"):
            resume_run(unfinished)

    def test_the_configuration_of_a_run_does_it_again(self, whole: dict[str, str]) -> None:
        assert run_cli("finetune", "--config", "whole/config.toml", "-o", "again").exit_code == 0
        assert hashes("again") == whole

    @pytest.mark.slow
    def test_how_often_snapshots_are_kept_changes_nothing_but_the_configuration(self, whole: dict[str, str]) -> None:
        for every in (None, 1, 1000):
            finetune_run(request(f"every-{every}", checkpoint_every=every))
            found = hashes(f"every-{every}")
            assert {name for name in EQUAL if found[name] != whole[name]} == {"run.json", "config.toml"}


class TestBreakdown:
    @pytest.mark.usefixtures("folder")
    def test_a_run_that_diverged_goes_on_with_a_lower_rate(self) -> None:
        with pytest.raises(DivergedError) as error:
            finetune_run(request("run", lr=1e30, clip=0.0, optimizer="sgd"))
        message = str(error.value)
        assert "Lower the learning rate (--lr)" in message
        assert message.endswith("with a lower rate: l0compress finetune --resume run --lr NUMBER")
        assert run_cli("finetune", "--resume", "run", "--lr", "0.001").exit_code == 0
        assert open_run(Path("run")).result["small"]["params"] <= 45

    def test_wrong_input_that_is_found_late_leaves_nothing(self, folder: Path) -> None:
        before = sorted(folder.rglob("*"))
        with pytest.raises(InputError, match="cannot be reached"):
            finetune_run(request("deep/er/run", target="params=0.01"))
        assert sorted(folder.rglob("*")) == before
