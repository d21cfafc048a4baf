"""A run that is killed, locked, out of room or sent a signal: its folder is whole at any moment, and it goes on."""

from __future__ import annotations

import errno
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from conftest import run_cli
from run_folders import Killed, files, hashes, hashes_of_all, request

from l0compress.errors import RunError, StoppedError
from l0compress.pipeline import runs
from l0compress.pipeline.checkpoints import RunCheckpoints
from l0compress.pipeline.durable import write_durably
from l0compress.pipeline.holding import begin_run
from l0compress.pipeline.run_manifest import read_manifest
from l0compress.pipeline.stops import Stops
from l0compress.pipeline.training_run import RunSummary, finetune_run, resume_run
from l0compress.training.events import ProgressEvent
from l0compress.training.processes import Processes

pytestmark = pytest.mark.slow

# Processes that tests start run the package that is tested, wherever another one may be installed.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}


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

    @pytest.mark.usefixtures("folder")
    def test_one_that_comes_while_processes_agree_that_none_came_holds_from_the_next_time_on(self) -> None:
        stops = Stops()

        class Waiting(Processes):
            """The signal is handled while this process waits for the others, who have had none."""

            def highest(self, number: int) -> int:
                if stops.signal is None:
                    stops.handle(signal.SIGTERM, None)
                return number

        with begin_run(Path("run"), {}) as run:
            checkpoints = RunCheckpoints(run, stops, processes=Waiting())
            checkpoints.check_stop()
            with pytest.raises(StoppedError, match=r"^Terminated\."):
                checkpoints.check_stop()

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
            f"{name}. The run is kept in 'run' at the end of epoch 2 of 3. "
            "Resume with: l0compress finetune --resume run"
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
        resume_run(Path("run"))
        assert hashes("run") == whole

    @pytest.mark.parametrize(
        ("number", "status", "first"),
        [(signal.SIGINT, 130, "all"), (signal.SIGTERM, 143, "all"), (signal.SIGTERM, 143, "workers")],
    )
    @pytest.mark.usefixtures("folder")
    def test_a_signal_to_the_workers_of_a_data_loader_too(
        self, number: int, status: int, first: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What Ctrl-C at a terminal does: every process of the group gets it, in any order."""
        command, process = self.with_workers()
        if first == "workers":
            for worker in psutil.Process(process.pid).children():
                worker.send_signal(number)
            time.sleep(0.1)
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == status and "The run is kept in 'run' at " in errors, errors
        monkeypatch.syspath_prepend(Path.cwd())
        for run in ("run", "other"):
            assert run_cli(*command, run).exit_code == 0
        assert hashes("run") == hashes("other")

    @pytest.mark.usefixtures("folder")
    def test_a_worker_of_a_data_loader_that_is_killed(self) -> None:
        """As where memory runs out."""
        _, process = self.with_workers(delay=0.05)
        psutil.Process(process.pid).children()[0].kill()
        _, errors = process.communicate(timeout=300)
        said = re.sub(r"\s+", " ", errors)
        assert process.returncode == 2, errors
        how = r"\(pid(\(s\))? \d+\) (is killed by signal: Killed|exited unexpectedly)"
        assert re.search(rf"Error: DataLoader worker {how}\. The last state is kept: step \d+ of ", said), errors
        assert "Resume with: l0compress finetune --resume run" in said, errors

    def with_workers(self, *, delay: float = 0.0) -> tuple[list[str], subprocess.Popen[str]]:
        """A command that trains on what two workers load, each sample in ``delay`` seconds; its process has a state."""
        Path("loaded.py").write_text(
            "import time, numpy as np, torch\n"
            "from torch.utils.data import DataLoader, TensorDataset\n"
            "class Slow(TensorDataset):\n"
            "    def __getitem__(self, index):\n"
            f"        time.sleep({delay})\n"
            "        return super().__getitem__(index)\n"
            "def parts():\n"
            "    arrays = {name: torch.from_numpy(array) for name, array in np.load('blobs.npz').items()}\n"
            "    train = Slow(arrays['x_train'], arrays['y_train'])\n"
            "    loader = DataLoader(train, batch_size=16, shuffle=True, num_workers=2)\n"
            "    return {'train': loader, 'val': (arrays['x_test'], arrays['y_test'])}\n"
        )
        flags = ("mlp.pt2", "--data", "loaded:parts", "--target", "params=0.6", "--epochs", "3")
        command = ["finetune", *flags, "--checkpoint-every", "1", "--resume", "-o"]
        process = subprocess.Popen(
            [sys.executable, "-m", "l0compress", *command, "run"],
            stdout=-1, stderr=-1, text=True, start_new_session=True, env=ENVIRONMENT,
        )  # fmt: skip
        while process.poll() is None and '"state": "state/' not in state_of("run"):
            time.sleep(0.002)
        assert process.poll() is None, process.communicate()
        return command, process


def state_of(run: str) -> str:
    path = Path(run, "run.json")
    return path.read_text() if path.exists() else ""
