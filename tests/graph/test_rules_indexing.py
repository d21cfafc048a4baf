"""Indices that are known beforehand move channels; those that are not leave all other dimensions free."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from networks import captured, grouped, image, table, tokens, vector
from rulechecks import check
from torch import Tensor, nn

from l0compress.errors import CaptureError, SurgeryError
from l0compress.graph import KeepPlan, find_groups, shrink

Form = Callable[[Tensor], Tensor]
ORDER = [5, 1, 2, 7, 0, 3, 6, 4]
CHANNELS = {"a channels": 8, "a inputs": 6}

# Between two linear layers of width 8: the form, the width that it leaves, and how many channels may go.
PICKED: dict[str, tuple[Form, int, dict[str, int]]] = {
    "permuted by a list": (lambda h: h[:, ORDER], 8, CHANNELS),
    # Channels that nobody picks can go for nothing; they are a group of their own.
    "some of them": (
        lambda h: h[:, [3, 1, 2]] + h[:, [0, 1, 4]],
        3,
        {"a channels": 3, "a #2 channels": 3, "a inputs": 6},
    ),
    "the same one twice": (lambda h: h[:, [0, 0, 1, 2, 3, 4, 5, 6, 7, 7]], 10, CHANNELS),
    "from behind": (lambda h: h[:, [-1, -2, 0, 1, 2, 3, 4, 5]], 8, CHANNELS),
    "in a matrix": (lambda h: h[:, [[0, 1, 2, 3], [4, 5, 6, 7]]].prod(1), 4, {"a width": 4, "a inputs": 6}),
    "by a range": (lambda h: h[:, torch.arange(7, -1, -1)], 8, CHANNELS),
    "by a computed index": (lambda h: h.index_select(1, (torch.arange(8) * 3) % 8), 8, CHANNELS),
}


@pytest.mark.mostly_slow
@pytest.mark.parametrize("form", PICKED)
def test_labels_follow_a_constant_index(tmp_path: Path, form: str) -> None:
    function, width, expected = PICKED[form]
    layers = {"a": nn.Linear(6, 8), "b": nn.Linear(width, 4)}
    check(lambda s, x: s.b(F.gelu(function(s.a(x)))), vector(), expected, onnx=tmp_path, **layers)


@pytest.mark.parametrize("pick", [lambda s, h: h[:, s.i], lambda s, h: h.index_select(1, s.i)])
def test_labels_follow_an_index_buffer(pick: Callable[..., Tensor]) -> None:
    layers = {"a": nn.Conv2d(3, 8, 1), "i": torch.tensor(ORDER), "b": nn.Conv2d(8, 4, 1)}
    check(lambda s, x: s.b(F.gelu(pick(s, s.a(x)))).flatten(2).mean(2), image(), {"a channels": 8}, **layers)


def test_an_index_of_another_plan_is_refused() -> None:
    layers = {"a": nn.Linear(6, 8), "i": torch.tensor(ORDER), "b": nn.Linear(8, 4)}
    graph = captured(lambda s, x: s.b(F.gelu(s.a(x)[:, s.i])), vector(), **layers)
    plan = KeepPlan.random(find_groups(graph), 0.5, 0)
    other = graph.with_state({**graph.state(), "i": torch.arange(8)})
    with pytest.raises(SurgeryError, match="not the one that the plan was made with"):
        shrink(other, plan)


def test_a_model_whose_index_is_written_computes_something_else_next_time() -> None:
    def moving(s: nn.Module, x: Tensor) -> Tensor:
        h = s.a(x)[:, s.i]
        s.i.copy_((s.i + 1) % 8)
        return s.b(F.gelu(h))

    layers = {"a": nn.Linear(6, 8), "i": torch.tensor(ORDER), "b": nn.Linear(8, 4)}
    with pytest.raises(CaptureError, match=r"Net\.forward changes 'i' \(networks\.py:\d+\)"):
        grouped(moving, vector(), **layers)


def where_of(h: Tensor) -> Tensor:
    """Positions along dimension 1, known at run time only, one for each sample and position."""
    return (h.abs().sum(2, keepdim=True) * 3).long() % h.shape[1]


def scattered_by(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def net(s: nn.Module, x: Tensor) -> Tensor:
        return s.b(F.gelu(function(s.a(x), s.c(x), where_of(x))))

    return net


# Of two tokens x 8 channels and positions of shape (batch, tokens, 1): channels pass, positions are mixed.
SCATTERED: dict[str, Callable[..., Tensor]] = {
    "gathered": lambda h, g, i: h.gather(1, i.expand(-1, -1, 8)) + g,
    "gathered in part": lambda h, g, i: h.gather(1, i[:, :2].expand(-1, -1, 8)) + g[:, :2],
    "scattered": lambda h, g, i: h.scatter(1, i.expand(-1, -1, 8) * 0 + torch.arange(5)[:, None], g),
    "scattered and added": lambda h, g, i: h.scatter_add(1, i.expand(-1, -1, 8), g),
    "reduced": lambda h, g, i: h.scatter_reduce(1, i.expand(-1, -1, 8), g, "amax"),
    "a number scattered": lambda h, g, i: h.scatter(1, i.expand(-1, -1, 8), 0.5) + g,
    "rows added": lambda h, g, _: h.index_add(1, torch.tensor([2, 0, 2, 1, 1]), g),
    "rows copied": lambda h, g, _: h.index_copy(1, torch.tensor([4, 3, 2, 1, 0]), g),
    "rows filled": lambda h, g, _: h.index_fill(1, torch.tensor([4, 0]), 0.5) + g,
    "rows put": lambda h, g, i: h.index_put((torch.arange(h.shape[0])[:, None], i[..., 0]), g, accumulate=True),
    "masked": lambda h, g, _: h.index_put((h > 0,), torch.tensor(0.5, dtype=h.dtype)) + g,
}


@pytest.mark.mostly_slow
@pytest.mark.parametrize("form", SCATTERED)
def test_what_is_indexed_at_run_time_leaves_channels_free(form: str) -> None:
    layers = {"a": nn.Linear(12, 8), "c": nn.Linear(12, 8), "b": nn.Linear(8, 4)}
    expected = {"a channels": 8, "a inputs": 12, "c inputs": 12}
    check(scattered_by(SCATTERED[form]), tokens(), expected, **layers)


@pytest.mark.parametrize(
    "form",
    [
        lambda h, g, _: h.gather(2, (g.abs() * 3).long() % 8),
        lambda h, g, _: h.scatter(2, (g.abs() * 3).long() % 8, 0.5),
        lambda h, g, _: h.masked_scatter(g > 0, g),
    ],
)
def test_what_is_indexed_along_channels_keeps_them(form: Callable[..., Tensor]) -> None:
    layers = {"a": nn.Linear(12, 8), "c": nn.Linear(12, 8), "b": nn.Linear(8, 4)}
    assert "a channels" not in table(grouped(scattered_by(form), tokens(), **layers))


def written(width: int, write: Callable[[Tensor, Tensor], object]) -> Form:
    def form(h: Tensor) -> Tensor:
        buffer = h.new_zeros(*h.shape[:-1], width)
        write(buffer, h)
        return buffer

    return form


def to_slice(buffer: Tensor, h: Tensor) -> None:
    buffer[:, 2:10] = h


def to_two_slices(buffer: Tensor, h: Tensor) -> None:
    buffer[:, :4] = h[:, 4:]
    buffer[:, 4:8].add_(h[:, :4]).mul_(2)
    buffer[:, 8:] = 0.5


def to_every_other(buffer: Tensor, h: Tensor) -> None:
    buffer[:, ::2] = h
    buffer[:, 1::2] = h.flip(1)


def to_one(buffer: Tensor, h: Tensor) -> None:
    buffer[:, :8] = h
    buffer[..., 0] = 0.25


def through_a_view(buffer: Tensor, h: Tensor) -> None:
    view = buffer.view(-1, 2, 8)
    view[:, 1] = h
    view.transpose(1, 2)[..., 0].copy_(torch.tanh(h) + buffer[:, 8:])


def through_a_permuted_view(buffer: Tensor, h: Tensor) -> None:
    buffer.view(-1, 2, 8).permute(1, 2, 0)[1] = h.t()
    buffer[:, :8] = 2 * h


def seen_through_an_earlier_view(buffer: Tensor, h: Tensor) -> None:
    earlier = buffer[:, :8]
    buffer[:, :8] = h
    buffer[:, 4:] = earlier * 2


WRITTEN: dict[str, tuple[int, Callable[[Tensor, Tensor], object], dict[str, int]]] = {
    "a slice": (12, to_slice, {"a channels": 8, "b inputs": 4, "a inputs": 6}),
    "two slices": (12, to_two_slices, {"a channels": 4, "a #2 channels": 4, "b inputs": 4, "a inputs": 6}),
    "every other": (16, to_every_other, {"a channels": 8, "a inputs": 6}),
    "one channel": (8, to_one, {"a channels": 7, "a inputs": 6, "b inputs": 1}),
    "a view of a view": (16, through_a_view, {"a width": 8, "a inputs": 6}),
    "a permuted view": (16, through_a_permuted_view, {"a width": 8, "a inputs": 6}),
    "an earlier view": (12, seen_through_an_earlier_view, {"a channels": 8, "a inputs": 6}),
}


@pytest.mark.mostly_slow
@pytest.mark.parametrize("form", WRITTEN)
def test_what_is_written_in_parts_is_joined(tmp_path: Path, form: str) -> None:
    width, write, expected = WRITTEN[form]
    layers = {"a": nn.Linear(6, 8), "b": nn.Linear(width, 4)}
    function = written(width, write)
    check(lambda s, x: s.b(F.gelu(function(s.a(x)))), vector(), expected, onnx=tmp_path, **layers)


@pytest.mark.parametrize("form", WRITTEN)
def test_capture_computes_what_the_writes_do(form: str) -> None:
    width, write, _ = WRITTEN[form]
    function = written(width, write)
    graph = captured(lambda s, x: function(x.repeat(1, 2)[:, :8] * s.a), vector(), a=nn.Parameter(torch.ones(8)))
    x = torch.randn(5, 6, dtype=torch.float64)
    assert torch.equal(graph.module()(x), function(x.repeat(1, 2)[:, :8] * graph.state()["a"]))


def test_written_positions_of_images() -> None:
    """Borders, quadrants and rows are written along positions; channels pass."""

    def quadrants(s: nn.Module, x: Tensor) -> Tensor:
        h = s.a(x)
        buffer = torch.zeros(x.shape[0], 8, 16, 16, dtype=x.dtype)
        buffer[:, :, :8, :8] = h
        buffer[:, :, 8:, 8:] += torch.tanh(h)
        buffer[:, :, 0] = 1
        return s.b(F.gelu(buffer)).flatten(2).mean(2)

    check(quadrants, image(), {"a channels": 8}, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 4, 1))


def test_a_mask_of_windows_that_are_shifted_along_one_side_only() -> None:
    """Slices such as ``[-0:0]`` are empty: nothing is written there."""

    def masked_by_windows(s: nn.Module, x: Tensor) -> Tensor:
        mask = x.new_zeros(8, 8)
        for number, rows in enumerate((slice(-4), slice(-4, 0), slice(0, None))):
            for columns in (slice(-4), slice(-4, -2), slice(-2, None)):
                mask[rows, columns] = number
        return s.b(s.a(x) * mask)

    check(masked_by_windows, image(), {"a channels": 8}, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 4, 1))
