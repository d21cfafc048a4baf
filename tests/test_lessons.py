"""The dense model's answers are asked for once where every epoch would hear the same, and in every step elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from l0compress.data import Batch, Data, Split, StreamSplit
from l0compress.graph import capture
from l0compress.training import lessons as lessons_module
from l0compress.training.course import Course
from l0compress.training.finetune import finetune
from l0compress.training.lessons import Lessons
from l0compress.training.outputs import outputs_of
from l0compress.training.preparation import course_of
from l0compress.training.settings import FinetuneSettings

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


def course(given: Data) -> Course:
    return course_of(capture(model(), (torch.zeros(2, 4),)), given, SETTINGS)


def unchanged(batch: Batch, generator: torch.Generator) -> Batch:
    del generator
    return batch


class Counting(nn.Module):
    """A teacher that counts how many samples it was asked about."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.samples = 0

    def forward(self, x: Tensor) -> Tensor:
        self.samples += len(x)
        return self.inner(x)


def test_answers_are_those_of_the_very_batches_of_an_epoch() -> None:
    run = course(data())
    assert run.teacher is not None
    for epoch in (0, 1):
        current = run.start_pass(epoch)
        pairs = list(zip(run.batches(current), run.answers(current), strict=True))
        assert len(pairs) == run.steps_per_epoch == 4
        for batch, answers in pairs:
            torch.testing.assert_close(answers, outputs_of(run.teacher, batch))


def test_a_resumed_epoch_gets_the_answers_of_the_batches_that_are_left() -> None:
    run = course(data())
    current = run.start_pass(0)
    current.step = 3
    (answers,) = run.answers(current)
    *_, last = run.batches(0)
    assert run.teacher is not None
    torch.testing.assert_close(answers, outputs_of(run.teacher, last))


def test_the_teacher_is_asked_once_about_each_sample() -> None:
    teacher = Counting(model())
    lessons = Lessons(teacher, part())
    for epoch in range(5):
        assert len(list(lessons.batches(16, seed=epoch))) == 4
    assert teacher.samples == 70 + 3  # three of them a second time, in another batch


def test_training_on_known_answers_is_training_on_asked_ones() -> None:
    graph = capture(model(), (torch.zeros(2, 4),))
    known = finetune(graph, data(), "macs=0.5", settings=SETTINGS)
    asked = finetune(graph, replace(data(), augment=unchanged), "macs=0.5", settings=SETTINGS)
    assert torch.equal(known.plan.keep, asked.plan.keep)
    for name, tensor in known.last.state().items():
        torch.testing.assert_close(tensor, asked.last.state()[name], rtol=1e-4, atol=1e-5)


def test_outputs_in_a_tree_keep_it() -> None:
    class Tree(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor | tuple[Tensor, ...]]:
            return {"logits": x * 2, "others": (x + 1,)}

    (answers,) = Lessons(Tree(), part(16)).batches(16, seed=0)
    (batch,) = part(16).batches(16, seed=0)
    (x,) = batch.args
    torch.testing.assert_close(answers, {"logits": x * 2, "others": (x + 1,)})


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class TimeFirst(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.T


@pytest.mark.parametrize("teacher", [Centred(), TimeFirst()])
def test_answers_that_depend_on_the_batch_are_not_known_beforehand(teacher: nn.Module) -> None:
    assert Lessons(teacher, part(4)).answers is None


def test_a_stream_is_asked_about_batch_by_batch() -> None:
    def batches() -> list[Batch]:
        return list(part().batches(16))

    assert Lessons(model(), StreamSplit(batches())).answers is None


def test_augmented_samples_are_asked_about_batch_by_batch() -> None:
    run = course(replace(data(), augment=unchanged))
    assert run.lessons is None
    assert next(iter(run.answers(run.start_pass(0)))) is None


def test_answers_that_take_too_much_memory_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lessons_module, "MOST_BYTES", 70 * 3 * 4 - 1)
    assert Lessons(model(), part()).answers is None
