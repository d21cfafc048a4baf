"""Several processes train one model: the result is that of one, and they end together, however one of them ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import torch.nn.functional as F
from ranks import PATIENCE, Ended, assert_same, command, ranks, told
from torch import Tensor, nn

import l0compress as l0
from l0compress.errors import DataError, InputError
from l0compress.gates.hard_concrete import HardConcrete
from l0compress.graph.nodes.batch_norm import batch_norm
from l0compress.training.events import WARNING, ProgressEvent
from l0compress.training.finetune import finetune
from l0compress.training.latency_targets import measured_time
from l0compress.training.launch import Launch, launched
from l0compress.training.losses import cross_entropy, objective_for
from l0compress.training.parts import Division, PartNoise
from l0compress.training.processes import Processes, joined
from l0compress.training.settings import FinetuneSettings, GateSettings

pytest.importorskip("accelerate")

FAST = GateSettings(share=0.5, learning_rate=0.2, multiplier_rate=0.3, many_steps=0, compact_below=0.3, compact_gain=0)


# ---- the same result ------------------------------------------------------------------------------------------------


def images() -> l0.Data:
    """Labels of which some do not count, in a number that no number of processes divides."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(65, 1, 4, 4, generator=generator)
    y = (x.mean((1, 2, 3)) > 0).long() + (x[:, 0, 0, 0] > 0.5).long()
    y[::7] = -100
    part = l0.Split((x,), y)
    return l0.Data(part, part)


def convolutions(dropout: float = 0.0) -> nn.Module:
    """No bias in front of the norm: its gradient is 0, and Adam makes whole steps of the rounding errors of it."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6)
    head = nn.Linear(96, 12), nn.ReLU(), nn.Dropout(dropout), nn.Linear(12, 3)
    return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1, bias=False), norm, nn.ReLU(), nn.Flatten(), *head).eval()


def tune(folder: str, **changes: Any) -> None:
    """A job: leave what a run came to."""
    data, dropout = images(), changes.pop("dropout", 0.0)
    graph = l0.capture(convolutions(dropout), (data.train.take(slice(0, 2)).args[0],))
    settings = FinetuneSettings(**{"epochs": 4, "batch_size": 13, "gates": FAST, "optimizer": "sgd", **changes})
    result = finetune(graph, data, {"macs": 0.5}, settings=settings)
    rows = [{k: v for k, v in event.row().items() if "seconds" not in k} for event in result.history]
    found = {"state": result.small.state(), "kept": result.plan.kept(), "rows": rows, "last": result.last_evaluation}
    torch.save({**found, "code": result.small.module().code}, f"{folder}.{launched().rank}")


def outcomes(size: int, folder: Path, name: str, **changes: Any) -> list[dict[str, Any]]:
    ended = told(size, _tune, str(folder / name), changes, folder=folder / f"said {name}")
    assert [(each.code, each.err) for each in ended] == [(0, "")] * size
    return [torch.load(folder / f"{name}.{rank}", weights_only=False) for rank in range(size)]


def _tune(folder: str, changes: dict[str, Any]) -> None:
    tune(folder, **changes)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def alone(place: Path) -> dict[str, Any]:
    return outcomes(1, place, "alone")[0]


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_reach_what_one_reaches(size: int, place: Path, alone: dict[str, Any]) -> None:
    found = outcomes(size, place, f"{size} processes")
    for each in found:
        assert_same(alone, each, 2e-5)
        assert_same(found[0], each, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"dropout": 0.3}, {"granularity": "both"}, {"optimizer": "adamw"}])
def test_the_same_processes_repeat_their_bits(changes: dict[str, Any], place: Path) -> None:
    first, again = (outcomes(2, place, f"{number} {sorted(changes)}", **changes)[1] for number in range(2))
    assert_same(first, again, 0.0)


def test_the_first_alone_hears_of_what_is_odd() -> None:
    """A warning of Python's, in the place of a callback, would be said once by each process."""
    event, heard = ProgressEvent(WARNING, 0, 4, epoch_done=False, message="sorted by class"), []
    for rank in range(2):
        Processes(Launch(rank, 2)).listener(heard.append)(event)
    assert heard == [event]


# ---- a batch in parts -----------------------------------------------------------------------------------------------


def parts(size: int, accumulate: int, targets: Tensor, least: int = 1) -> list[Any]:
    objective = objective_for("auto", targets, torch.zeros(len(targets), 3))
    divisions = [Division(Processes(Launch(rank, size)), accumulate, least) for rank in range(size)]
    return [part for division in divisions for part in division.parts(objective, targets, len(targets))]


@pytest.mark.parametrize(("size", "accumulate"), [(1, 3), (2, 1), (3, 2), (2, 40)])
def test_the_losses_of_the_parts_add_up_to_that_of_the_batch(size: int, accumulate: int) -> None:
    torch.manual_seed(1)
    logits, targets = torch.randn(11, 3), torch.tensor([0, 1, 2, -100, -100, -100, 1, 1, 0, 2, -100])
    objective = objective_for("auto", targets, logits)
    found = parts(size, accumulate, targets)
    assert [row for part in found for row in range(11)[part.rows]] == list(range(11))
    assert [part.number for part in found] == list(range(len(found)))
    total = sum(objective.loss(logits[part.rows], targets[part.rows], None, part.share) for part in found)
    torch.testing.assert_close(total, cross_entropy(logits, targets))


def test_every_process_has_as_many_parts_and_each_part_the_samples_that_it_needs() -> None:
    found = parts(2, 5, torch.zeros(9, dtype=torch.int64), least=2)
    assert [range(9)[part.rows] for part in found] == [range(2), range(2, 4), range(4, 6), range(6, 9)]


def test_a_batch_that_is_too_small_is_refused() -> None:
    message = (
        "A batch has 3 samples, too few for 2 processes with at least 2 each. Nothing was changed. Pass --batch-size 4 "
        "or more, or start fewer processes."
    )
    with pytest.raises(DataError) as refused:
        parts(2, 1, torch.zeros(3, dtype=torch.int64), least=2)
    assert str(refused.value) == message


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_loss_that_is_no_mean_cannot_be_divided(reduction: str) -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction=reduction)

    torch.manual_seed(0)
    x = torch.randn(12, 4)
    part = l0.Split((x,), x[:, :3].argmax(1))
    graph = l0.capture(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), (x[:2],))
    settings = FinetuneSettings(epochs=2, loss=loss, accumulate=2)
    if reduction == "mean":
        assert finetune(graph, l0.Data(part, part), {"macs": 0.6}, settings=settings).history
        return
    with pytest.raises(InputError, match=r"it is not a mean over samples, and cannot be divided\. Nothing was changed"):
        finetune(graph, l0.Data(part, part), {"macs": 0.6}, settings=settings)


def test_gates_draw_alike_in_all_parts_and_dropout_does_not() -> None:
    gates = HardConcrete(5, log_alpha=0.0)
    torch.manual_seed(4)
    expected, after = gates(), torch.rand(1)
    torch.manual_seed(4)
    noise, drawn = PartNoise("cpu"), []
    for number in range(3):
        with noise.of(gates, number):
            drawn.append((gates(), F.dropout(torch.ones(40))))
    noise.end_()
    assert all(torch.equal(each, expected) for each, _ in drawn)
    assert len({tuple(dropped.tolist()) for _, dropped in drawn}) == 3
    assert torch.equal(torch.rand(1), after)


def test_accumulation_reaches_what_whole_batches_reach() -> None:
    torch.manual_seed(2)
    x = torch.randn(60, 5)
    part = l0.Split((x,), x[:, :3].argmax(1))
    graph = l0.capture(nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3)), (x[:2],))
    whole, halves = (
        finetune(
            graph,
            l0.Data(part, part),
            {"macs": 0.5},
            settings=FinetuneSettings(epochs=4, batch_size=20, gates=FAST, optimizer="sgd", accumulate=accumulate),
        )
        for accumulate in (1, 3)
    )
    assert whole.plan.kept() == halves.plan.kept()
    for name, tensor in whole.small.state().items():
        torch.testing.assert_close(halves.small.state()[name], tensor, rtol=1e-4, atol=1e-5)


# ---- batch norm and checksums ---------------------------------------------------------------------------------------


def norm_and_differ(folder: str) -> None:
    """A job: batch norm over all samples against that of the whole batch; then process 1 says something else."""
    processes, rank = joined(), launched().rank
    torch.manual_seed(0)
    x, weight, direction = torch.randn(7, 3, 2), torch.rand(3), torch.randn(7, 3, 2)
    rows = processes.rows(7)
    found = []
    for part, context in ((rows, True), (slice(None), False)):
        input, scale = x[part].clone().requires_grad_(), weight.clone().requires_grad_()
        mean, var = torch.zeros(3), torch.ones(3)
        arguments = scale, torch.ones(3), mean, var, True, 0.1, 1e-5, False
        if context:
            with processes.statistics():
                output = batch_norm(input, *arguments)
                (output * direction[part]).sum().backward()
        else:
            output = batch_norm(input, *arguments)
            (output * direction).sum().backward()
        found.append((output.detach(), input.grad, scale.grad, mean, var))
    (output, gradient, of_scale, *running), (whole, whole_gradient, of_whole_scale, *expected) = found
    torch.testing.assert_close(output, whole[rows])
    torch.testing.assert_close(gradient, whole_gradient[rows], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(running, expected)
    assert of_scale is not None and of_whole_scale is not None
    gradients = [of_scale.clone(), of_scale.double()]
    processes.average_(gradients)
    torch.testing.assert_close(2 * gradients[0], of_whole_scale)
    torch.testing.assert_close(2 * gradients[1].float(), of_whole_scale)
    assert processes.sums([1.0, rank]) == [2.0, 1.0]
    assert processes.highest(rank) == 1
    assert processes.from_first(lambda: f"from {rank}") == "from 0"
    processes.check_same("alike", "Nothing")
    try:
        processes.check_same(f"of {rank}", "What was trained")
    except l0.errors.ProcessesError as error:
        Path(f"{folder}.{rank}").write_text(str(error))
    processes.leave_()


def other_data(folder: str) -> None:
    """A job: each process has data of its own."""
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(launched().rank))
    part = l0.Split((x,), x[:, :3].argmax(1))
    torch.manual_seed(0)
    graph = l0.capture(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), (x[:2],))
    try:
        finetune(graph, l0.Data(part, part), {"macs": 0.6})
    except l0.errors.ProcessesError as error:
        Path(f"{folder}.{launched().rank}").write_text(str(error))
    joined().leave_()


def test_processes_with_different_data_are_refused(tmp_path: Path) -> None:
    assert told(2, other_data, str(tmp_path / "error"), folder=tmp_path) == [Ended(0, "", "")] * 2
    message = "The first training batch differs from that of process 0 in process 1 of 2 (counted from 0)."
    assert [(tmp_path / f"error.{rank}").read_text().startswith(message) for rank in range(2)] == [True] * 2


def test_a_process_by_itself_has_nobody_to_hear() -> None:
    alone = Processes()
    assert alone.say("a word") == alone.from_first(lambda: "a word") == "a word"
    alone.await_first()
    with pytest.raises(l0.errors.ProcessesError, match=r"^There is no other process that could say something\."):
        alone.hear()


def test_processes_share_statistics_and_notice_that_they_differ(tmp_path: Path) -> None:
    ended = told(2, norm_and_differ, str(tmp_path / "error"), folder=tmp_path)
    assert ended == [Ended(0, "", "")] * 2
    message = (
        "What was trained differs from that of process 0 in process 1 of 2 (counted from 0). Nothing was written. Give "
        "all processes the same model, data, settings, versions and kind of device."
    )
    assert [(tmp_path / f"error.{rank}").read_text() for rank in range(2)] == [message] * 2


# ---- the command line -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(place: Path) -> tuple[Path, Path]:
    torch.manual_seed(0)
    x = torch.randn(96, 8)
    model, data = place / "model.pt2", place / "data.npz"
    network = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 3))
    dynamic = ({0: torch.export.Dim("n")},)
    torch.export.save(torch.export.export(network, (x[:2],), dynamic_shapes=dynamic), model)
    np.savez(data, x=x.numpy(), y=x[:, :3].argmax(1).numpy())
    return model, data


def words(files: tuple[Path, Path], folder: Path, *more: str, target: str = "macs=0.5") -> tuple[str, ...]:
    model, data = files
    return ("finetune", str(model), "--data", str(data), "--target", target, "-o", str(folder), *more)


def test_the_first_process_writes_and_speaks(files: tuple[Path, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    first, second = told(2, command, *words(files, run, "--epochs", "2", "--json"), folder=tmp_path / "said")
    assert (first.code, second) == (0, Ended(0, "", ""))
    assert json.loads(first.out)["run"] == str(run)
    assert first.err.count("finetune") == 1
    again = told(2, command, "finetune", "--resume", run, "--json", folder=tmp_path / "again")
    assert [each.code for each in again] == [0, 0]
    assert json.loads(again[0].out) == json.loads(first.out)


def test_what_all_of_them_refuse_is_said_once(files: tuple[Path, Path], tmp_path: Path) -> None:
    ended = told(2, command, *words(files, tmp_path / "run", "--batch-size", "1"), folder=tmp_path)
    assert [each.code for each in ended] == [2, 2]
    assert "".join(each.err for each in ended).count("Error: ") == 1
    assert "too few for 2 processes" in ended[0].err
    assert not (tmp_path / "run").exists()


def test_what_the_first_alone_refuses_ends_all(files: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "other").touch()
    first, second = told(2, command, *words(files, tmp_path / "run"), folder=tmp_path)
    assert (first.code, second) == (2, Ended(1, "", ""))
    assert "already exists" in first.err


def epochs_done(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


def wait_for(run: Path, epochs: int) -> None:
    end = time.monotonic() + 90
    while epochs_done(run) < epochs:
        assert time.monotonic() < end, "the run has not come so far"
        time.sleep(0.01)


LONG = ("--epochs", "96", "--batch-size", "16", "--checkpoint-every", "7")


def interrupted(
    files: tuple[Path, Path], folder: Path, *, size: int, victim: int, number: signal.Signals
) -> list[Ended]:
    """What the processes of a run leave, one of which gets a signal in mid-run."""
    with ranks(size, command, *words(files, folder / "run", *LONG), folder=folder / "said") as started:
        wait_for(folder / "run", 6)
        os.kill(started.processes[victim].pid or 0, number)
        return started.ended()


def rows(run: Path) -> Iterator[dict[str, Any]]:
    yield from map(json.loads, (run / "metrics.jsonl").read_text().splitlines())


@pytest.fixture(scope="module")
def undisturbed(files: tuple[Path, Path], place: Path) -> Path:
    run = place / "undisturbed"
    assert [each.code for each in told(1, command, *words(files, run, *LONG), folder=place / "said whole")] == [0]
    return run


def assert_resumes(run: Path, undisturbed: Path, folder: Path, *, size: int) -> None:
    """Another number of processes goes on, and ends where one undisturbed process ends."""
    ended = told(size, command, "finetune", "--resume", run, folder=folder / "resumed")
    assert [each.code for each in ended] == [0] * size
    assert "resumed in epoch" in ended[0].err
    for found, expected in zip(rows(run), rows(undisturbed), strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], abs=1e-3)
    kept = [json.loads((folder / "plan.json").read_text()) for folder in (run, undisturbed)]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_killed_process_ends_the_run_with_one_message(
    victim: int, files: tuple[Path, Path], undisturbed: Path, tmp_path: Path
) -> None:
    ended = interrupted(files, tmp_path, size=2, victim=victim, number=signal.SIGKILL)
    survivor = ended[1 - victim]
    assert (ended[victim].code, survivor.code) == (-signal.SIGKILL, 1)
    errors = [line for each in ended for line in each.err.splitlines() if line.startswith(("Error", "Traceback"))]
    assert len(errors) == 1
    assert errors[0].startswith("Error: Another process of this run has ended, or cannot be reached (")
    assert errors[0].endswith(f"Resume with: l0compress finetune --resume {tmp_path / 'run'}")
    assert_resumes(tmp_path / "run", undisturbed, tmp_path, size=1)


@pytest.mark.slow
def test_a_family_of_two_processes_is_that_of_one(files: tuple[Path, Path], tmp_path: Path) -> None:
    """It is stopped in its second member, and goes on in one process."""
    line = "--epochs", "40", "--batch-size", "16", "--checkpoint-every", "7"
    whole, run = tmp_path / "whole", tmp_path / "run"
    alone = told(1, command, *words(files, whole, *line, target="macs=0.7,0.4"), folder=tmp_path / "one")
    assert [each.code for each in alone] == [0]
    with ranks(2, command, *words(files, run, *line, target="macs=0.7,0.4"), folder=tmp_path / "two") as started:
        wait_for(run, epochs_done(whole) // 2 + 2)
        os.kill(started.processes[0].pid or 0, signal.SIGINT)
        assert [each.code for each in started.ended()] == [130, 130]
    (ended,) = told(1, command, "finetune", "--resume", run, "--json", folder=tmp_path / "again")
    assert ended.code == 0
    found = json.loads(ended.out)["members"]
    assert [Path(member["run"]).name for member in found] == ["macs=0.7", "macs=0.4"]
    for member in found:
        plans = [(folder / Path(member["run"]).name / "plan.json").read_text() for folder in (run, whole)]
        assert plans[0] == plans[1]


def time_it(folder: str) -> None:
    """A job: measure a network, and then a small one beside it."""
    torch.manual_seed(0)
    graph = l0.capture(nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3)), (torch.zeros(2, 8),))
    found = measured_time(graph, FinetuneSettings())
    times = {**found.to_json(), "beside": [found.beside.time(graph), found.beside.time(graph)]}
    Path(f"{folder}.{launched().rank}").write_text(json.dumps(times))
    joined().leave_()


@pytest.mark.slow
def test_a_time_is_measured_by_one_for_all(tmp_path: Path) -> None:
    assert [each.code for each in told(2, time_it, str(tmp_path / "times"), folder=tmp_path)] == [0, 0]
    first, second = (json.loads((tmp_path / f"times.{rank}").read_text()) for rank in range(2))
    assert first == second
    assert first["beside"][0] != first["beside"][1]


@pytest.mark.slow
def test_one_of_four_is_killed_and_three_go_on(files: tuple[Path, Path], undisturbed: Path, tmp_path: Path) -> None:
    ended = interrupted(files, tmp_path, size=4, victim=2, number=signal.SIGKILL)
    assert [each.code for each in ended] == [1, 1, -signal.SIGKILL, 1]
    assert "".join(each.err for each in ended).count("Error: ") == 1
    assert_resumes(tmp_path / "run", undisturbed, tmp_path, size=3)


def test_a_signal_to_one_stops_all_after_the_same_step(files: tuple[Path, Path], tmp_path: Path) -> None:
    ended = interrupted(files, tmp_path, size=2, victim=1, number=signal.SIGTERM)
    assert [each.code for each in ended] == [143, 143]
    errors = [line for each in ended for line in each.err.splitlines() if line.startswith("Error")]
    assert len(errors) == 1
    assert errors[0].startswith("Error: Terminated. The run is kept in ")


# ---- by itself ------------------------------------------------------------------------------------------------------

_BY_ITSELF = """
import sys
from l0compress.cli.app import main
sys.argv = ["l0compress", *sys.argv[1:]]
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
import torch
assert not torch.distributed.is_initialized()
print([name for name in sys.modules if name.partition(".")[0] == "accelerate" or "accelerated" in name])
"""


@pytest.mark.slow
def test_one_process_imports_nothing_of_it(files: tuple[Path, Path], tmp_path: Path) -> None:
    arguments = words(files, tmp_path / "run", "--epochs", "0")
    ended = subprocess.run([sys.executable, "-c", _BY_ITSELF, *arguments], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"WORLD_SIZE": "2"},
            "The environment has no RANK, although WORLD_SIZE is above 1. Nothing was changed. Start the processes "
            "with torchrun or accelerate launch, or unset WORLD_SIZE.",
        ),
        (
            {"WORLD_SIZE": "two"},
            "The environment has WORLD_SIZE='two'. Nothing was changed. Start the processes with torchrun or "
            "accelerate launch, or unset WORLD_SIZE.",
        ),
        (
            {"WORLD_SIZE": "2", "RANK": "2"},
            "The environment says RANK=2 with WORLD_SIZE=2, but ranks are counted from 0. Nothing was changed. Start "
            "the processes with torchrun or accelerate launch, which set both.",
        ),
    ],
)
def test_an_environment_that_contradicts_itself(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as refused:
        launched()
    assert str(refused.value) == message


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["0", "1"])
def test_a_process_that_torchrun_started_is_killed(victim: str, files: tuple[Path, Path], tmp_path: Path) -> None:
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "l0compress")
    line = [sys.executable, "-m", *launcher, *words(files, tmp_path / "run", *LONG, "--epochs", "400")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=environment) as torchrun:
        wait_for(tmp_path / "run", 6)
        (pid,) = (each for each in psutil.Process(torchrun.pid).children() if each.environ().get("RANK") == victim)
        pid.kill()
        said = torchrun.communicate(timeout=PATIENCE)[1]
    assert torchrun.returncode == 1
    (error,) = (line for line in said.splitlines() if line.startswith("Error: "))
    assert error.endswith(f"Resume with: l0compress finetune --resume {tmp_path / 'run'}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ("torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        (
            "accelerate.commands.launch",
            "--cpu",
            "--num_processes",
            "2",
            "--num_machines",
            "1",
            "--mixed_precision",
            "no",
        ),
    ],
    ids=["torchrun", "accelerate"],
)
def test_launchers_start_the_command_unchanged(
    launcher: tuple[str, ...], files: tuple[Path, Path], tmp_path: Path
) -> None:
    line = [sys.executable, "-m", *launcher, "-m", "l0compress", *words(files, tmp_path / "run", "--epochs", "2")]
    ended = subprocess.run(line, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("wrote ") == 1
    assert json.loads((tmp_path / "run" / "result.json").read_text())["epochs"] == 2
