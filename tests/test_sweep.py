"""Sweeps: a grid of ordinary runs, gone on with where it was stopped, compared over seeds, recorded as a study."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import printed_json, run_cli
from filelock import FileLock
from run_folders import Killed, dying_at, hashes

from l0compress.errors import InputError, RunError, TargetError
from l0compress.pipeline.requests import request_of
from l0compress.pipeline.run_manifest import read_manifest
from l0compress.pipeline.runs import open_run
from l0compress.pipeline.sweep import Sweep, grid, parse_seeds, parse_targets_list
from l0compress.pipeline.sweep_places import Place, UnderWay
from l0compress.pipeline.sweep_process import run_and_wait
from l0compress.pipeline.sweep_result import result_of
from l0compress.pipeline.sweep_study import study_in
from l0compress.pipeline.sweep_trials import run_sweep
from l0compress.pipeline.training_run import finetune_run

SHARED = {"model": "mlp.pt2", "data": "blobs.npz", "epochs": 2, "checkpoint_every": 2}
TRIALS = grid(["params=0.8", "params=0.5"], ["magnitude"], [0, 1])
FLAGS = (
    "sweep", "mlp.pt2", "--data", "blobs.npz", "--epochs", 2, "--checkpoint-every", 2, "--methods", "magnitude",
    "-o", "S",
)  # fmt: skip


@pytest.fixture(scope="session")
def swept(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep whose trials are all finished."""
    folder = tmp_path_factory.mktemp("swept")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("mlp.pt2", "blobs.npz"):
            shutil.copy(made / name, name)
        sweep = Sweep(Path("S"), SHARED, TRIALS)
        for trial in TRIALS:
            finetune_run(request_of({**sweep.values(trial), "threads": 1}, output=sweep.run_of(trial)))
    return folder / "S"


@pytest.fixture
def sweep(swept: Path, folder: Path) -> Sweep:
    shutil.copytree(swept, folder / "S")
    return Sweep(Path("S"), SHARED, TRIALS)


class TestGrid:
    def test_a_number_without_a_unit_has_the_one_before(self) -> None:
        assert parse_targets_list("macs=0.5, 0.25,params=26500") == ["macs=0.5", "macs=0.25", "params=26500"]

    def test_what_is_named_twice_is_run_once(self) -> None:
        assert len(grid(["macs=0.5", "macs=0.50"], ["l0"], [0, 0])) == 1

    @pytest.mark.parametrize(
        ("make", "error", "message"),
        [
            (lambda: parse_targets_list("0.5"), TargetError, "--targets '0.5' begins without a unit."),
            (lambda: parse_targets_list("macs=0.5,,"), InputError, "--targets 'macs=0.5,,' has an empty part."),
            (lambda: parse_seeds("0,-1"), InputError, "--seeds '0,-1': '-1' is no seed."),
            (lambda: grid(["macs=0.5"], ["l2"], [0]), InputError, "--methods 'l2': there is no such method."),
        ],
    )
    def test_what_is_malformed_is_refused(self, make, error: type[InputError], message: str) -> None:
        with pytest.raises(error) as raised:
            make()
        assert str(raised.value).startswith(message)


class TestResult:
    @pytest.mark.slow
    def test_mean_and_spread_are_those_of_the_runs(self, sweep: Sweep) -> None:
        scores = [open_run(sweep.run_of(trial)).result["test"]["small"]["metric"] for trial in TRIALS[::2]]
        table = result_of(sweep, {}).table()
        assert [row[0] for row in table.rows] == ["dense", "params=0.8 magnitude", "params=0.5 magnitude"]
        assert table.rows[1][1:3] == ("2", f"{statistics.mean(scores):.4f} ± {statistics.stdev(scores):.4f}")

    def test_the_front_is_that_of_means(self, sweep: Sweep) -> None:
        result = result_of(sweep, {})
        points = result.tradeoff().points
        for one in points:
            beaten = any(
                other.score >= one.score
                and other.counts["params"] <= one.counts["params"]
                and (other.score, other.counts["params"]) != (one.score, one.counts["params"])
                for other in points
            )
            assert ("params" in result.tradeoff().unbeaten(one)) == (not beaten)

    @pytest.mark.slow
    def test_a_finished_sweep_runs_nothing_and_leaves_a_page(self, sweep: Sweep) -> None:
        before = {trial.name: hashes(sweep.run_of(trial)) for trial in TRIALS}
        found = printed_json(*FLAGS, "--targets", "params=0.8,0.5", "--seeds", "0,1")
        assert {trial.name: hashes(sweep.run_of(trial)) for trial in TRIALS} == before
        assert [trial["run"] for trial in found["trials"]] == [trial.name for trial in TRIALS]
        page = Path("S/sweep.html").read_text()
        assert "params=0.5 magnitude" in page and "<svg" in page
        assert not re.findall(r"""(?:src|href)=["']https?:|<script|<link|<img""", page)
        assert json.loads(Path("S/sweep.json").read_text()) == found
        assert Path("S/pareto.png").read_bytes().startswith(b"\x89PNG")

    def test_other_settings_are_refused_before_anything_runs(self, sweep: Sweep) -> None:
        with pytest.raises(RunError, match=r"^Trial 'S/params=0\.8-magnitude-seed0' has \[training\] epochs = 2"):
            Sweep(sweep.folder, {**SHARED, "epochs": 3}, TRIALS).check()


class TestStudy:
    def test_every_finished_trial_is_recorded_once(self, sweep: Sweep) -> None:
        optuna = pytest.importorskip("optuna")
        for _ in range(2):
            study = study_in(sweep)
            for trial in TRIALS:
                study.record(trial)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend("S/optuna.log"))
            trials = optuna.load_study(study_name="sweep", storage=storage).trials
        assert [trial.user_attrs["run"] for trial in trials] == [trial.name for trial in TRIALS]
        assert trials[0].params == {"method": "magnitude", "seed": 0, "params": 0.8}
        scores = [open_run(sweep.run_of(trial)).result["test"]["small"]["metric"] for trial in TRIALS]
        assert [trial.values[0] for trial in trials] == scores


class Elsewhere(Place, UnderWay):
    """A node that has files of its own."""

    jobs, threads, hears_interrupts = 1, 1, False

    def __init__(self, code: int) -> None:
        self.code = code

    def begin(self, arguments: Sequence[str], log: Path) -> UnderWay:
        del arguments, log
        return self

    def exit_code(self) -> int:
        return self.code

    def stop(self) -> None: ...

    def wait(self) -> None: ...


# Ray lowers the priority of its workers, which would wait for all other tests.
WITH_RAY = {**os.environ, "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}
ONE_TASK = "import ray; ray.init(address='local', include_dashboard=False); ray.get(ray.remote(lambda: 0).remote())"


@pytest.fixture(scope="session")
def a_machine_for_ray() -> None:
    """Some sandboxes do not let Ray's processes talk to each other: nothing of ours is in this one."""
    try:
        subprocess.run([sys.executable, "-c", ONE_TASK], env=WITH_RAY, check=True, timeout=180, capture_output=True)
    except subprocess.SubprocessError as error:
        pytest.skip(f"Ray cannot run a task on this machine ({type(error).__name__})")


class TestRay:
    """On a cluster of this machine alone, in a process of its own: Ray keeps what it started until its driver ends."""

    def begun(self, *flags: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "l0compress", *map(str, (*FLAGS, *flags, "--ray", "local"))]
        return subprocess.Popen(command, env=WITH_RAY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    @pytest.mark.slow
    @pytest.mark.usefixtures("folder", "a_machine_for_ray")
    def test_trials_end_as_on_this_machine_and_one_that_fails_stops_no_other(self, swept: Path) -> None:
        process = self.begun("--targets", "params=0.8,0.01", "--seeds", "0", "--threads", 1)
        said, errors = process.communicate(timeout=600)
        assert process.returncode == 1, errors
        assert "params=0.8 magnitude" in said and "params=0.01-magnitude-seed0 failed: Target" in said
        name = "params=0.8-magnitude-seed0"
        of_both = [hashes(folder / name) for folder in (Path("S"), swept)]
        assert of_both[0] == of_both[1]

    @pytest.mark.slow
    @pytest.mark.usefixtures("folder", "a_machine_for_ray")
    def test_a_sweep_that_is_stopped_keeps_the_state_of_what_is_under_way(self) -> None:
        process = self.begun("--targets", "params=0.8", "--seeds", "0", "--threads", 1, "--epochs", 5000)
        log = Path("S", "params=0.8-magnitude-seed0", "log.jsonl")
        for _ in range(6000):
            if process.poll() is not None or (log.exists() and '"epoch"' in log.read_text(encoding="utf-8")):
                break
            time.sleep(0.1)
        process.terminate()
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 143, errors
        assert "every trial under way has kept its state. Go on with the same command." in errors
        assert not read_manifest(log.parent).finished
        with FileLock(log.parent / ".lock", timeout=0):
            pass

    def test_a_file_asks_a_process_to_end(self, tmp_path: Path) -> None:
        stop = tmp_path / "trial.stop"
        asking = threading.Timer(0.5, stop.touch)
        asking.start()
        sleeping = ("-c", "import time; time.sleep(600)")
        assert run_and_wait(sleeping, str(tmp_path / "log"), str(tmp_path), str(stop)) == -signal.SIGTERM
        asking.join()

    @pytest.mark.usefixtures("folder")
    @pytest.mark.parametrize("code", [0, 2])
    def test_a_trial_that_wrote_elsewhere_has_failed(self, code: int) -> None:
        sweep = Sweep(Path("S"), SHARED, TRIALS[:1])
        told: list[str] = []
        result = run_sweep(sweep, place=Elsewhere(code), on_trial=told.append)
        words = f"exit code {code}, but what it wrote is not here: every node has to see this folder at the same path"
        assert result.failed == {TRIALS[0].name: words}
        assert told[-1].endswith(words)

    @pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
    def test_where_no_cluster_answers_nothing_is_run(self, folder: Path, address: str) -> None:
        outcome = run_cli(*FLAGS, "--targets", "params=0.8", "--ray", address)
        assert outcome.exit_code == 2
        assert outcome.stderr.startswith(f"Error: --ray '{address}': no Ray cluster answers (")
        assert "Start one with `ray start --head`, or pass --ray local for one of this machine alone." in outcome.stderr
        assert not (folder / "S").exists()

    def test_settings_are_checked_before_a_cluster_is_asked_for(self) -> None:
        outcome = run_cli(*FLAGS, "--targets", "params=0.8", "--ray", "127.0.0.1:1", "--l2", 0.1)
        assert outcome.exit_code == 2
        assert outcome.stderr.startswith("Error: l2=0.1 with method='magnitude': ")


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_a_trial_that_was_killed_goes_on_and_one_that_fails_stops_no_other() -> None:
    sweep = Sweep(Path("S"), SHARED, grid(["params=0.8", "params=0.01"], ["magnitude"], [0]))
    killed, hopeless = sweep.trials
    asked = request_of({**sweep.values(killed), "threads": 1}, output=sweep.run_of(killed))
    with pytest.raises(Killed):
        finetune_run(asked, on_event=dying_at(1))
    outcome = run_cli(*FLAGS, "--targets", "params=0.8,0.01", "--seeds", "0", "--jobs", 2)
    assert outcome.exit_code == 1
    assert f"resuming {killed.name}" in outcome.stderr and f"running {hopeless.name}" in outcome.stderr
    assert sweep.is_finished(killed) and not sweep.run_of(hopeless).exists()
    assert "params=0.8 magnitude" in outcome.stdout and "params=0.01-magnitude-seed0 failed: Target" in outcome.stdout
    assert "Error: 1 of 2 trials failed; the others are kept. The same command runs them again" in outcome.stderr
