"""The folder of a family: members that are runs, whole at any moment, and what every command makes of them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import printed_json, run_cli, save_blobs, save_pt2, tiny_mlp
from run_folders import EQUAL, Killed, dying_at, files, hashes_of_all, request

from l0compress.errors import InputError, RunError, TargetError
from l0compress.pipeline import family_run
from l0compress.pipeline.family_run import finetune_family_run, resume_family_run
from l0compress.pipeline.run_manifest import read_manifest
from l0compress.pipeline.runs import is_family, open_family, open_run
from l0compress.pipeline.training_run import finetune_run

TARGETS = "params=0.9,0.75,0.6"
MEMBERS = ["params=0.9", "params=0.75", "params=0.6"]
QUICK = {"target": TARGETS, "epochs": 6, "checkpoint_every": 3}


@pytest.fixture(scope="session")
def made_family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its data, and a family of three that nobody touched."""
    folder = tmp_path_factory.mktemp("family")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save_pt2(tiny_mlp(), (torch.zeros(2, 8),), Path("mlp.pt2"))
        save_blobs(Path("blobs.npz"))
        finetune_family_run(request("whole", **QUICK))
    return folder


@pytest.fixture
def place(made_family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, with a copy of all that."""
    monkeypatch.chdir(shutil.copytree(made_family, tmp_path / "place"))
    threads = torch.get_num_threads()
    yield tmp_path / "place"
    torch.set_num_threads(threads)


def kept(run: str) -> dict[str, str]:
    """The hashes of all files but the logs, which hold times."""
    return {name: digest for name, digest in hashes_of_all(Path(run)).items() if not name.endswith("log.jsonl")}


@pytest.mark.usefixtures("place")
class TestFolder:
    @pytest.mark.slow
    def test_it_holds_what_is_documented_and_nothing_else(self) -> None:
        own = {"run.json", "config.toml", "dense.pt2", "metrics.jsonl", "log.jsonl"}
        assert files("whole") == own | {f"{member}/{name}" for member in MEMBERS for name in EQUAL}

    def test_a_member_is_a_run_within_its_budget(self) -> None:
        for member, least in zip(MEMBERS, (0.75, 0.6, 0.0), strict=True):
            run = open_run(Path("whole", member))
            assert run.result["val"]["small"]["metric"] > 0.5
            assert least < run.result["target"]["reached"] / run.result["dense"]["params"] <= float(member[7:])

    def test_the_manifest_covers_the_members(self) -> None:
        manifest = read_manifest(Path("whole"))
        assert manifest.about["members"] == MEMBERS
        assert {f"{member}/run.json" for member in MEMBERS} < manifest.files.keys()
        Path("whole/params=0.75/result.json").write_text("{}")
        with pytest.raises(RunError, match=r"result\.json' is damaged or was modified"):
            open_family(Path("whole"))

    def test_metrics_say_which_member_they_are_of(self) -> None:
        rows = [json.loads(line) for line in Path("whole/metrics.jsonl").read_text().splitlines()]
        assert list(dict.fromkeys(row["member"] for row in rows)) == MEMBERS
        own = [json.loads(line) for line in Path("whole/params=0.6/metrics.jsonl").read_text().splitlines()]
        assert own == [{k: v for k, v in row.items() if k != "member"} for row in rows if row["member"] == MEMBERS[2]]

    @pytest.mark.slow
    def test_the_configuration_repeats_it_with_the_same_hashes(self) -> None:
        assert run_cli("finetune", "--config", "whole/params=0.75/config.toml", "-o", "again").exit_code == 0
        assert kept("again") == kept("whole")

    def test_a_family_is_no_single_run(self) -> None:
        with pytest.raises(RunError) as caught:
            open_run(Path("whole"))
        assert str(caught.value) == (
            "Run 'whole' is a family. Nothing was changed. Name one of its members: whole/params=0.9, "
            "whole/params=0.75, whole/params=0.6."
        )
        with pytest.raises(RunError, match=r"^Run 'whole/params=0\.9' has no members: it is no family\."):
            open_family(Path("whole/params=0.9"))
        with pytest.raises(TargetError, match=r"^The target names 3 members of a family, and a run has one\."):
            finetune_run(request("other", **QUICK))
        assert not Path("other").exists()

    def test_what_is_wrong_with_the_targets_is_said_before_anything_is_written(self) -> None:
        arguments = ("--data", "blobs.npz", "--target", "params=0.9,0.9001", "-o", "wrong")
        outcome = run_cli("finetune", "mlp.pt2", *arguments)
        assert outcome.exit_code == 2 and "both allow" in outcome.stderr
        assert not Path("wrong").exists()


@pytest.mark.usefixtures("place")
class TestKilled:
    # Of 2, 2 and 3 epochs, after the dense model was measured: in the second member, and in the third.
    @pytest.mark.slow
    @pytest.mark.parametrize("epochs", [3, 6])
    def test_it_goes_on_to_the_same_bytes(self, epochs: int) -> None:
        with pytest.raises(Killed):
            finetune_family_run(request("run", **QUICK), on_event=dying_at(epochs))
        done = [member for member in MEMBERS if Path("run", member).exists()]
        assert all(is_whole(Path("run", member)) for member in done)
        summary = resume_family_run(Path("run"))
        assert kept("run") == kept("whole")
        assert [member.folder.name for member in summary.members] == MEMBERS

    @pytest.mark.slow
    @pytest.mark.parametrize("moment", ["before", "after"])
    def test_it_is_killed_while_a_member_is_written(self, moment: str) -> None:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            patch.setattr(family_run, "export_models", dying(family_run.export_models, moment, at=2))
            finetune_family_run(request("run", **QUICK))
        assert Path("run", MEMBERS[0]).exists() and not Path("run", MEMBERS[1]).exists()
        resume_family_run(Path("run"))
        assert kept("run") == kept("whole")

    @pytest.mark.slow
    def test_it_is_killed_between_a_member_and_the_manifest_that_names_it(self) -> None:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            patch.setattr(family_run.LivingRun, "keep_", dying(family_run.LivingRun.keep_, "before", at=2))
            finetune_family_run(request("run", **QUICK))
        stamp = Path("run", MEMBERS[1], "run.json").stat().st_mtime_ns
        resume_family_run(Path("run"))
        assert Path("run", MEMBERS[1], "run.json").stat().st_mtime_ns == stamp
        assert kept("run") == kept("whole")

    @pytest.mark.slow
    def test_what_is_wrong_later_takes_no_finished_member_away(self) -> None:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError):
            patch.setattr(family_run, "results_of", failing(family_run.results_of, at=2))
            finetune_family_run(request("run", target=TARGETS, epochs=0))
        assert is_whole(Path("run", MEMBERS[0]))
        assert [member.folder.name for member in resume_family_run(Path("run")).members] == MEMBERS

    @pytest.mark.slow
    def test_an_unfinished_one_says_where_it_stands(self) -> None:
        with pytest.raises(Killed):
            finetune_family_run(request("run", **QUICK), on_event=dying_at(4))
        outcome = run_cli("export", "run")
        assert outcome.exit_code == 2 and "Run 'run' is not finished: its last state is " in outcome.stderr
        assert " of params=0.75. " in outcome.stderr and "finetune --resume run" in outcome.stderr
        resumed = printed_json("finetune", "--resume", "run")
        assert [member["run"] for member in resumed["members"]] == [f"run/{member}" for member in MEMBERS]

    def test_a_finished_one_prints_its_result_again(self) -> None:
        assert printed_json("finetune", "--resume", "whole") == resume_family_run(Path("whole")).to_json()


def dying(function: Callable, moment: str, *, at: int) -> Callable:
    """A function that ends the process before or after its call number ``at``."""
    calls = [0]

    def call(*args: object) -> object:
        calls[0] += 1
        if moment == "before" and calls[0] == at:
            raise Killed
        result = function(*args)
        if moment == "after" and calls[0] == at:
            raise Killed
        return result

    return call


def failing(function: Callable, *, at: int) -> Callable:
    """A function that finds something wrong with the input at its call number ``at``."""
    calls = [0]

    def call(*args: object) -> object:
        calls[0] += 1
        if calls[0] == at:
            raise InputError("Something is wrong.", fix="Mend it.")
        return function(*args)

    return call


def is_whole(member: Path) -> bool:
    return open_run(member).folder == member


@pytest.mark.usefixtures("place")
class TestCommands:
    @pytest.mark.slow
    def test_all_members_are_exported_each_into_its_folder(self) -> None:
        exported = printed_json("export", "whole")
        assert [(one["member"], one["path"]) for one in exported["members"]] == [
            (member, f"whole/{member}/model.onnx") for member in MEMBERS
        ]
        for member in MEMBERS:
            verified = printed_json("verify", f"whole/{member}/model.onnx", "--against", "whole")
            assert verified["equal"] and verified["against"] == f"whole/{member}"

    def test_one_member_is_exported_where_it_is_wanted(self) -> None:
        exported = printed_json("export", "whole", "--member", "params=0.60", "--format", "pt2", "-o", "small.pt2")
        assert [one["path"] for one in exported["members"]] == ["small.pt2"]
        assert printed_json("verify", "small.pt2", "--against", "whole/params=0.6")["equal"]

    @pytest.mark.parametrize(
        "arguments, said",
        [
            (("whole", "-o", "x.onnx"), "'x.onnx' is one path for 3 members. Nothing was written. Omit it, or name one "
             "of them with --member."),
            (("whole", "--member", "params=0.5"), "Family 'whole' has no member 'params=0.5'. Nothing was changed. It "
             "has params=0.9, params=0.75, params=0.6."),
            (("whole/params=0.9", "--member", "params=0.9"), "--member names a member of a family, but "
             "'whole/params=0.9' is a single run. Nothing was written. Omit it."),
        ],
    )  # fmt: skip
    def test_what_cannot_be_exported_is_refused(self, arguments: tuple[str, ...], said: str) -> None:
        outcome = run_cli("export", *arguments)
        assert (outcome.exit_code, outcome.stderr) == (2, f"Error: {said}\n")

    def test_another_members_artifact_fails_verification(self) -> None:
        printed_json("export", "whole", "--member", "params=0.9", "-o", "large.onnx")
        assert run_cli("verify", "large.onnx", "--against", "whole/params=0.6").exit_code == 1
        assert "Run 'whole' is a family." in run_cli("verify", "large.onnx", "--against", "whole").stderr

    def test_a_member_is_a_run_like_any_other(self) -> None:
        printed_json("export", "whole/params=0.75")
        resumed = printed_json("finetune", "--resume", "whole/params=0.75")
        assert resumed["target"]["unit"] == "params" and not is_family(Path("whole/params=0.75"))

    @pytest.mark.slow
    def test_all_members_are_timed_beside_dense_and_int8(self) -> None:
        arguments = ("bench", "whole", "--batch", "1,4", "--threads", "1", "--plot", "family.svg")
        measured = printed_json(*arguments)
        names = [form for model in ("dense", *MEMBERS) for form in (model, f"{model} int8")]
        assert [candidate["name"] for candidate in measured["bench"]["candidates"]] == names
        assert measured["metrics"].keys() == set(names) and measured["unbeaten"].keys() == {
            "batch 1",
            "batch 4",
            "file",
        }
        for member, run in zip(MEMBERS, measured["members"], strict=True):
            assert measured["metrics"][member] == run["test"]["small"]["metric"]
        drawing = Path("family.svg").read_text()
        assert all(f"<!-- {text} -->" in drawing for text in (*names, "batch 1", "batch 4", "file size"))
        printed = run_cli(*arguments).stdout
        assert "The family whole" in printed and "dense int8" in printed
        assert [line.partition(":")[0] for line in printed.splitlines() if re.match("  (at|in) ", line)] == [
            "  at batch 1", "  at batch 4", "  in file size"
        ]  # fmt: skip
