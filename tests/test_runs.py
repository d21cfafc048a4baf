"""The run folder: whole at any moment, held by one process, checked when it is read."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from conftest import run_cli, save_blobs, save_pt2, tiny_mlp
from safetensors import safe_open

from l0compress.errors import DivergedError, InputError, RunError, StoppedError
from l0compress.pipeline import runs
from l0compress.pipeline.checkpoints import Stops
from l0compress.pipeline.durable import write_durably
from l0compress.pipeline.manifest import read_manifest
from l0compress.pipeline.requests import RunRequest, request_of
from l0compress.pipeline.runs import newest_run, newest_unfinished, open_run
from l0compress.pipeline.training_run import RunSummary, finetune_run, resume_run
from l0compress.training.events import ProgressEvent

EQUAL = (
    "run.json", "config.toml", "dense.pt2", "masked.pt2", "small.pt2", "plan.json", "result.json", "metrics.jsonl"
)  # fmt: skip


# Processes that tests start run the package that is tested, wherever another one may be installed.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}


class Killed(BaseException):
    """The process ends here: nothing after this line happens, and nobody catches it."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, data, a run that nobody touched, and one that was killed after its second epoch."""
    folder, before = tmp_path_factory.mktemp("made"), Path.cwd()
    os.chdir(folder)
    save_pt2(tiny_mlp(), (torch.zeros(2, 8),), Path("mlp.pt2"))
    save_blobs(Path("blobs.npz"))
    finetune_run(request("whole"))
    with pytest.raises(Killed):
        finetune_run(request("run"), on_event=dying_at(2))
    os.chdir(before)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("mlp.pt2", "blobs.npz"):
        shutil.copy(made / name, name)
    return tmp_path


def request(output: str, **changes: object) -> RunRequest:
    values = {"model": "mlp.pt2", "data": "blobs.npz", "target": "params=0.6", "epochs": 3, "checkpoint_every": 2}
    return request_of({**values, **changes}, output=Path(output))


def hashes(run: str | Path) -> dict[str, str]:
    return {name: sha256(Path(run, name).read_bytes()).hexdigest() for name in EQUAL}


def files(run: str | Path) -> set[str]:
    return {path.relative_to(run).as_posix() for path in Path(run).rglob("*") if path.is_file()}


@pytest.fixture
def whole(made: Path, folder: Path) -> dict[str, str]:
    """The hashes of a run that nobody touched."""
    shutil.copytree(made / "whole", folder / "whole")
    return hashes("whole")


def dying_at(steps: int) -> Callable[[ProgressEvent], None]:
    """A callback that ends the process at an event: live events come at most twice a second, closing ones always."""
    left = [steps]

    def die(event: ProgressEvent) -> None:
        left[0] -= event.epoch_done
        if left[0] < 0:
            raise Killed

    return die


@pytest.fixture
def unfinished(made: Path, folder: Path) -> Path:
    """A run that was killed after its second epoch."""
    return Path(shutil.copytree(made / "run", folder / "run"))


class TestFolder:
    @pytest.mark.usefixtures("whole")
    def test_a_finished_run_holds_what_is_documented_and_nothing_else(self) -> None:
        assert files("whole") == {*EQUAL, "log.jsonl"}

    def test_the_manifest_has_the_checksum_of_every_file_but_the_log(self, whole: dict[str, str]) -> None:
        manifest = read_manifest(Path("whole"))
        assert manifest.finished
        assert manifest.files == {name: digest for name, digest in whole.items() if name != "run.json"}

    @pytest.mark.usefixtures("whole")
    def test_metrics_hold_no_time_and_the_log_does(self) -> None:
        rows = [json.loads(line) for line in Path("whole/metrics.jsonl").read_text().splitlines()]
        assert not {"seconds", "seconds_left"} & set().union(*rows)
        log = [json.loads(line) for line in Path("whole/log.jsonl").read_text().splitlines()]
        assert [line["what"] for line in log] == ["began", *["epoch"] * 4, "finished"]
        assert all("time" in line for line in log)

    def test_an_unfinished_run_is_readable_without_us(self, unfinished: Path) -> None:
        manifest = json.loads((unfinished / "run.json").read_text())
        assert manifest["status"] == "unfinished" and manifest["position"] == "step 6 of 6 in epoch 2 of 3"
        state = json.loads((unfinished / f"{manifest['state']}.json").read_text())
        assert state["stage"] == "finetune" and [row["stage"] for row in state["history"]] == ["gates"]
        with safe_open(unfinished / f"{manifest['state']}.safetensors", framework="numpy") as tensors:
            assert {"network.0.weight", "best.0.weight", "random.torch"} <= set(tensors.keys())

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
        with pytest.raises(RunError, match=r"is damaged or was changed.* Nothing was changed\."):
            open_run(Path("whole"))

    @pytest.mark.usefixtures("whole")
    def test_a_missing_file_is_named(self) -> None:
        Path("whole/small.pt2").unlink()
        with pytest.raises(RunError, match=r"Cannot read '.*small\.pt2' of run 'whole': No such file"):
            open_run(Path("whole"))

    @pytest.mark.usefixtures("unfinished")
    def test_an_unfinished_run_is_refused_with_the_way_to_finish_it(self) -> None:
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
        with pytest.raises(RunError, match="is damaged or was changed"):
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
            "Error: Run 'run' has seed = 0, and 4 was asked for. Nothing was changed. Resume it without that, or start "
            "a new run; lr, clip, checkpoint_every may change.\n"
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

    def test_how_often_snapshots_are_kept_changes_nothing_but_the_configuration(self, whole: dict[str, str]) -> None:
        for every in (None, 1, 1000):
            finetune_run(request(f"every-{every}", checkpoint_every=every))
            found = hashes(f"every-{every}")
            assert {name for name in EQUAL if found[name] != whole[name]} == {"run.json", "config.toml"}


def hashes_of_all(run: Path) -> dict[str, str]:
    return {name: sha256((run / name).read_bytes()).hexdigest() for name in sorted(files(run)) if name != ".lock"}


class TestEveryMoment:
    """The process ends at each single call that changes the disk, in turn."""

    def test_after_a_death_at_any_write_the_run_ends_as_if_nothing_had_been(
        self, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = self.counted(monkeypatch)
        finetune_run(request("count"))
        total = calls.made
        assert total > 60
        for death in range(0, total, 11):
            run = f"run-{death}"
            calls.start(death)
            with pytest.raises(Killed):
                finetune_run(request(run))
            calls.start(None)
            self.again(run)
            assert hashes(run) == whole, f"killed at write {death}"
            assert files(run) == files("whole")

    def test_after_many_deaths(self, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        calls, draw, deaths = self.counted(monkeypatch), random.Random(0), 0
        while not (Path("run/run.json").exists() and read_manifest(Path("run")).finished):
            calls.start(draw.randrange(4, 26))
            try:
                self.again("run")
            except Killed:
                deaths += 1
        assert deaths >= 4 and hashes("run") == whole

    def again(self, run: str) -> RunSummary:
        return resume_run(Path(run)) if runs.is_run(Path(run)) else finetune_run(request(run))

    def counted(self, monkeypatch: pytest.MonkeyPatch) -> Calls:
        calls = Calls()
        monkeypatch.setattr(os, "fsync", calls.before(os.fsync))
        monkeypatch.setattr(Path, "replace", calls.before(Path.replace))
        monkeypatch.setattr(Path, "unlink", calls.before(Path.unlink))
        monkeypatch.setattr(Path, "mkdir", calls.before(Path.mkdir))
        return calls


class Calls:
    """Counts calls, and lets the process die before one of them; what a dead process would not do, it does not."""

    def __init__(self) -> None:
        self.start(None)

    def start(self, death: int | None) -> None:
        self.made, self.death = 0, death

    def before(self, function: Callable) -> Callable:
        def counting(*arguments, **options):
            # Whatever runs while the stack unwinds would not run in a process that is gone.
            if self.death is not None and self.made >= self.death:
                raise Killed
            self.made += 1
            return function(*arguments, **options)

        return counting


class TestOneProcess:
    def test_a_second_process_is_refused(self, unfinished: Path) -> None:
        before = hashes_of_all(unfinished)
        with held_by_another_process(unfinished):
            outcome = run_cli("finetune", "--resume", "run")
            assert outcome.exit_code == 2
            assert outcome.stderr.startswith("Error: Run 'run' is in use by another process. Nothing was changed.")
        assert hashes_of_all(unfinished) == before

    @pytest.mark.usefixtures("folder")
    def test_two_processes_cannot_begin_the_same_run(self) -> None:
        Path("run").mkdir()
        with held_by_another_process(Path("run")), pytest.raises(RunError, match="is in use by another process"):
            finetune_run(request("run"))

    def test_the_lock_of_a_process_that_was_killed_does_not_hold(self, whole: dict[str, str], unfinished: Path) -> None:
        with held_by_another_process(unfinished) as process:
            process.kill()
            process.wait()
            resume_run(unfinished)
        assert hashes("run") == whole


class held_by_another_process:
    """Another process has the lock."""

    def __init__(self, run: Path) -> None:
        self.lock = run / ".lock"

    def __enter__(self) -> subprocess.Popen[str]:
        program = (
            f"import time, filelock; lock = filelock.FileLock({str(self.lock)!r}); lock.acquire();"
            "print(1, flush=True); time.sleep(600)"
        )
        self.process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "1\n"
        return self.process

    def __exit__(self, *reason: object) -> None:
        self.process.kill()
        self.process.communicate()


class TestFullDisk:
    def test_the_last_state_is_kept_and_the_message_says_so(
        self, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for room in (9, 13, 17, 40):
            run, left = f"run-{room}", [room]

            def no_room(descriptor: int, left: list[int] = left) -> None:
                left[0] -= bool(descriptor)
                if left[0] < 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            with monkeypatch.context() as patched:
                patched.setattr(os, "fsync", no_room)
                with pytest.raises(RunError, match="No space left on device") as error:
                    finetune_run(request(run))
            assert f"Its last state is kept: {read_manifest(Path(run)).position}." in str(error.value)
            assert f"Make room, then: l0compress finetune --resume {run}" in str(error.value)
            assert not [name for name in files(run) if name.endswith(".part")]
            resume_run(Path(run))
            assert hashes(run) == whole

    @pytest.mark.usefixtures("whole")
    def test_a_file_that_may_not_grow(self) -> None:
        """The operating system refuses the write itself, in a process of its own."""
        most = Path("whole/dense.pt2").stat().st_size // 2
        program = (
            f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, {most}));"
            "from l0compress.cli import main; sys.argv[0] = 'l0compress'; main()"
        )
        flags = ["finetune", "mlp.pt2", "--data", "blobs.npz", "--target", "params=0.6", "--epochs", "3", "-o", "run"]
        process = subprocess.run(
            [sys.executable, "-c", program, *flags], capture_output=True, text=True, env=ENVIRONMENT
        )
        assert process.returncode == 2, process.stderr
        assert process.stderr.splitlines()[-1].startswith("Error: Cannot write ")
        assert "File too large" in process.stderr and "Traceback" not in process.stderr

    def test_a_durable_write_leaves_the_old_content_or_the_new(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "file"
        write_durably(path, b"old")

        def broken(descriptor: int) -> None:
            raise OSError(errno.EIO, f"broken {descriptor}")

        monkeypatch.setattr(os, "fsync", broken)
        with pytest.raises(OSError, match="broken"):
            write_durably(path, b"new")
        assert path.read_bytes() == b"old" and [entry.name for entry in tmp_path.iterdir()] == ["file"]


class TestSignals:
    def test_the_first_signal_waits_for_the_step_and_the_second_does_not(self) -> None:
        stops = Stops()
        stops.handle(signal.SIGTERM, None)
        assert stops.signal == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            stops.handle(signal.SIGINT, None)

    @pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Interrupted"), (signal.SIGTERM, "Terminated")])
    def test_a_signal_stops_the_run_after_a_step(self, whole: dict[str, str], number: int, name: str) -> None:
        handlers = [signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)]

        def raise_in_epoch_2(event: ProgressEvent) -> None:
            if event.epoch == 2 and event.epoch_done:
                signal.raise_signal(number)

        with pytest.raises(StoppedError) as error:
            finetune_run(request("run"), on_event=raise_in_epoch_2)
        assert error.value.exit_code == 128 + number
        assert str(error.value) == (
            f"{name}. The run is kept in 'run' at the end of epoch 2 of 3. Go on with: l0compress finetune --resume run"
        )
        assert [signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)] == handlers
        resume_run(Path("run"))
        assert hashes("run") == whole

    def test_an_impatient_second_signal_leaves_the_snapshot_before(self, whole: dict[str, str]) -> None:
        def twice(event: ProgressEvent) -> None:
            if event.epoch == 2 and event.epoch_done:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)

        with pytest.raises(StoppedError, match="is kept in 'run' at step 6 of 6 in epoch 2 of 3"):
            finetune_run(request("run"), on_event=twice)
        resume_run(Path("run"))
        assert hashes("run") == whole


class TestBreakdown:
    @pytest.mark.usefixtures("folder")
    def test_a_run_that_diverged_goes_on_with_a_lower_rate(self) -> None:
        with pytest.raises(DivergedError) as error:
            finetune_run(request("run", lr=1e30, clip=0.0, optimizer="sgd"))
        message = str(error.value)
        assert "Lower the learning rate (--lr)" in message
        assert message.endswith("by: l0compress finetune --resume run --lr NUMBER")
        assert run_cli("finetune", "--resume", "run", "--lr", "0.001").exit_code == 0
        assert open_run(Path("run")).result["small"]["params"] <= 45

    def test_wrong_input_that_is_found_late_leaves_nothing(self, folder: Path) -> None:
        before = sorted(folder.rglob("*"))
        with pytest.raises(InputError, match="cannot be reached"):
            finetune_run(request("deep/er/run", target="params=0.01"))
        assert sorted(folder.rglob("*")) == before


class TestProcesses:
    """The command line, killed for real; ``make prove-resume`` does this thirty times over."""

    def test_killed_and_resumed(self, whole: dict[str, str]) -> None:
        arguments = ("mlp.pt2", "--data", "blobs.npz", "--target", "params=0.6", "--epochs", "3")
        command = [sys.executable, "-m", "l0compress", "finetune", *arguments, "--checkpoint-every", "2"]
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
            process = subprocess.Popen([*command, "-o", "run", "--resume"], stdout=-1, stderr=-1, env=ENVIRONMENT)
            before = state_of("run")
            while process.poll() is None and state_of("run") == before:
                time.sleep(0.002)
            process.send_signal(number)
            process.communicate()
        subprocess.run([*command, "-o", "run", "--resume"], check=True, capture_output=True, env=ENVIRONMENT)
        assert hashes("run") == whole

    @pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    @pytest.mark.usefixtures("folder")
    def test_a_signal_to_the_workers_of_a_data_loader_too(self, number: int, status: int) -> None:
        """What Ctrl-C at a terminal does: every process of the group gets it."""
        Path("loaded.py").write_text(
            "import numpy as np, torch\n"
            "from torch.utils.data import DataLoader, TensorDataset\n"
            "def parts():\n"
            "    arrays = {name: torch.from_numpy(array) for name, array in np.load('blobs.npz').items()}\n"
            "    train = TensorDataset(arrays['x_train'], arrays['y_train'])\n"
            "    loader = DataLoader(train, batch_size=16, shuffle=True, num_workers=2)\n"
            "    return {'train': loader, 'val': (arrays['x_test'], arrays['y_test'])}\n"
        )
        flags = ("mlp.pt2", "--data", "loaded:parts", "--target", "params=0.6", "--epochs", "3")
        command = [sys.executable, "-m", "l0compress", "finetune", *flags, "--checkpoint-every", "1", "--resume", "-o"]
        process = subprocess.Popen(
            [*command, "run"], stdout=-1, stderr=-1, text=True, start_new_session=True, env=ENVIRONMENT
        )
        while process.poll() is None and '"state": "state/' not in state_of("run"):
            time.sleep(0.002)
        assert process.poll() is None, process.communicate()
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == status and "The run is kept in 'run' at " in errors, errors
        for run in ("run", "other"):
            subprocess.run([*command, run], check=True, capture_output=True, env=ENVIRONMENT)
        assert hashes("run") == hashes("other")


def state_of(run: str) -> str:
    path = Path(run, "run.json")
    return path.read_text() if path.exists() else ""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
