"""The teacher runs once over all samples where every epoch would get the same outputs, and in every step elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from l0compress.data import Batch, Data, Split, StreamSplit
from l0compress.graph import capture
from l0compress.training import teacher as teacher_module
from l0compress.training.finetune import finetune
from l0compress.training.outputs import outputs_of
from l0compress.training.problem import Problem, problem_of
from l0compress.training.settings import FinetuneSettings
from l0compress.training.teacher import TeacherCache

SETTINGS = FinetuneSettings(epochs=2, batch_size=16)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).eval()


def part(num_samples: int = 70, *, seed: int = 0) -> Split:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_samples, 4, generator=generator)
    return Split((x,), torch.randint(0, 3, (num_samples,), generator=generator))


def data() -> Data:
    return Data(part(), part(20, seed=1))


def problem_on(given: Data) -> Problem:
    return problem_of(capture(model(), (torch.zeros(2, 4),)), given, SETTINGS)


def unchanged(batch: Batch, generator: torch.Generator) -> Batch:
    del generator
    return batch


class Counting(nn.Module):
    """A teacher that counts the samples that it runs on."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.samples = 0

    def forward(self, x: Tensor) -> Tensor:
        self.samples += len(x)
        return self.inner(x)


def test_outputs_are_those_for_the_very_batches_of_an_epoch() -> None:
    problem = problem_on(data())
    assert problem.teacher is not None
    for epoch in map(problem.epoch, (0, 1)):
        pairs = list(zip(problem.batches(epoch), problem.teacher_outputs(epoch), strict=True))
        assert len(pairs) == problem.steps_per_epoch == 4
        for batch, outputs in pairs:
            torch.testing.assert_close(outputs, outputs_of(problem.teacher, batch))


def test_a_resumed_epoch_gets_the_outputs_for_the_batches_that_are_left() -> None:
    problem = problem_on(data())
    epoch = problem.epoch(0)
    epoch.step = 3
    (outputs,) = problem.teacher_outputs(epoch)
    *_, last = problem.batches(problem.epoch(0))
    assert problem.teacher is not None
    torch.testing.assert_close(outputs, outputs_of(problem.teacher, last))


def test_the_teacher_runs_once_over_each_sample() -> None:
    teacher = Counting(model())
    cache = TeacherCache(teacher, part())
    for epoch in range(5):
        assert len(list(cache.batches(16, seed=epoch))) == 4
    assert teacher.samples == 70 + 3  # three of them a second time, in another batch


def test_training_on_cached_outputs_is_training_on_new_ones() -> None:
    graph = capture(model(), (torch.zeros(2, 4),))
    cached = finetune(graph, data(), "macs=0.5", settings=SETTINGS)
    computed = finetune(graph, replace(data(), augment=unchanged), "macs=0.5", settings=SETTINGS)
    assert torch.equal(cached.plan.keep, computed.plan.keep)
    for name, tensor in cached.last.state().items():
        torch.testing.assert_close(tensor, computed.last.state()[name], rtol=1e-4, atol=1e-5)


def test_outputs_in_a_tree_keep_it() -> None:
    class Tree(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor | tuple[Tensor, ...]]:
            return {"logits": x * 2, "others": (x + 1,)}

    (outputs,) = TeacherCache(Tree(), part(16)).batches(16, seed=0)
    (batch,) = part(16).batches(16, seed=0)
    (x,) = batch.args
    torch.testing.assert_close(outputs, {"logits": x * 2, "others": (x + 1,)})


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class TimeFirst(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.T


@pytest.mark.parametrize("teacher", [Centred(), TimeFirst()])
def test_outputs_that_depend_on_the_batch_are_not_cached(teacher: nn.Module) -> None:
    assert TeacherCache(teacher, part(4)).outputs is None


def test_a_stream_is_not_cached() -> None:
    def batches() -> list[Batch]:
        return list(part().batches(16))

    assert TeacherCache(model(), StreamSplit(batches())).outputs is None


def test_augmented_samples_are_not_cached() -> None:
    problem = problem_on(replace(data(), augment=unchanged))
    assert problem.teacher_cache is None
    assert next(iter(problem.teacher_outputs(problem.epoch(0)))) is None


def test_outputs_that_take_too_much_memory_are_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_module, "MOST_BYTES", 70 * 3 * 4 - 1)
    assert TeacherCache(model(), part()).outputs is None
