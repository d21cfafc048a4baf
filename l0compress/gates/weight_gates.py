"""Gates on single weights: one hard concrete gate for each element of a parameter.

The maths is that of :mod:`l0compress.gates.hard_concrete`. The difference is that there are as many gates as weights,
so sampling and multiplying are one operator with a derivative in closed form. It keeps one tensor besides the product,
and works block by block: a pass over all weights would be bound by memory, and there are a dozen passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from l0compress.devices import constant_on, widest_float
from l0compress.errors import InputError
from l0compress.gates.hard_concrete import Gates, Stretch

_NOISE_BITS = 16
_SMALLEST = 1e-3
_BLOCK = 2**16


class WeightGate(Gates):
    """The gates of one parameter; calling it with the parameter returns the gated parameter.

    In training mode the gates are sampled from torch's global generator, in evaluation mode they are at their median.

    Args:
        log_alpha: where the gates start, of the parameter's shape.

    >>> gate = WeightGate(torch.tensor([[3.0, -9.0]])).eval()
    >>> gate(torch.tensor([[2.0, 2.0]]))
    tensor([[2., 0.]], grad_fn=<MulBackward0>)
    """

    def forward(self, weight: Tensor) -> Tensor:
        """Return ``weight`` times one sample of its gates in training mode, times their medians in evaluation mode."""
        if not self.training:
            return weight * self.median().to(weight.dtype)
        return _sampled(self, weight)

    def sample(self, weight: Tensor, noise: Tensor) -> Tensor:
        """Return ``weight`` times the gates drawn from logistic ``noise`` (``log u - log(1 - u)``), overwriting it."""
        return _Gated.apply(weight, self.log_alpha, noise, self.temperature, self.stretch)

    def expected_cost(self, costs: float | Tensor) -> Tensor:
        """Return ``sum of costs * P(gate is not zero)``: a scalar in the device's widest float, differentiable."""
        shift = self.temperature * math.log(-self.stretch.low / self.stretch.high)
        return _ExpectedCost.apply(self.log_alpha, costs, shift)

    def expected_sum(self, rows: Tensor, columns: Tensor, counts: Tensor | None = None) -> Tensor:
        """Return ``sum of rows[i] * columns[j] * counts[ij] * P(gate ij is not zero)``, a scalar; differentiable.

        Args:
            rows: as many as the parameter has along its first dimension.
            columns: as many as the rest of its dimensions have together.
            counts: of the parameter's shape; None is one each.
        """
        shift = self.temperature * math.log(-self.stretch.low / self.stretch.high)
        return _ExpectedSum.apply(self.log_alpha, rows, columns, counts, shift)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"shape={tuple(self.log_alpha.shape)}, temperature={self.temperature}, stretch={tuple(self.stretch)}"


def _draw(gates: WeightGate, weight: Tensor) -> Tensor:
    return gates.sample(weight, logistic_like(gates.log_alpha, gates.generator))


# torch.compile would unroll the blocks, and does not support the table of random words.
_sampled: Callable[[WeightGate, Tensor], Tensor] = cast(Any, torch.compiler.disable)(_draw)


def starting_log_alpha(weight: Tensor, log_alpha: float, slope: float) -> Tensor:
    """Return where the gates of a pretrained weight start: ``log_alpha + slope * log(|weight| / median)``.

    The median is that of the parameter's magnitudes; magnitudes below a thousandth of it count as that.

    >>> starting_log_alpha(torch.tensor([1.0, -2.0, 4.0]), 3.0, 1.0)
    tensor([2.3069, 3.0000, 3.6931])
    """
    if slope == 0:
        return torch.full(weight.shape, float(log_alpha))
    magnitudes = weight.detach().float().abs()
    median = magnitudes.median().clamp_min(torch.finfo(torch.float32).tiny)
    return log_alpha + slope * (magnitudes / median).clamp_min(_SMALLEST).log()


def logistic_like(tensor: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return logistic noise ``log u - log(1 - u)`` of the tensor's shape; on CPU ``u`` is one of 2^16 values in (0, 1).

    >>> noise = logistic_like(torch.zeros(1000))
    >>> abs(float(noise.sigmoid().mean()) - 0.5) < 0.05
    True
    """
    if tensor.device.type != "cpu":  # a GPU has logarithms to spare
        tiny = max(2.0 ** -(_NOISE_BITS + 1), torch.finfo(tensor.dtype).eps)
        uniform = torch.rand_like(tensor, memory_format=torch.contiguous_format, generator=generator)
        return uniform.clamp_(tiny, 1 - tiny).logit_()
    # Four numbers per random word, and a table instead of logarithms: torch.rand and torch.logit would take longer
    # than everything else that a gate needs.
    words = torch.empty((tensor.numel() + 3) // 4, dtype=torch.int64)
    words.random_(torch.iinfo(torch.int64).min, None, generator=generator)
    numbers = words.view(torch.uint16)[: tensor.numel()]
    table = _logistic_table().to(tensor.dtype)
    noise = torch.empty(tensor.shape, dtype=tensor.dtype)
    for positions, part in _blocks(numbers, noise):
        torch.index_select(table, 0, positions.to(torch.int32), out=part)
    return noise


@cache
def _logistic_table() -> Tensor:
    size = 2**_NOISE_BITS
    return torch.logit((torch.arange(size, dtype=torch.float64) + 0.5) / size).float()


class _Gated(torch.autograd.Function):
    """Equations 10 and 11 of Louizos et al. 2018 and the product with the weight, in place on the noise."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, log_alpha: Tensor, noise: Tensor, temperature: float, stretch: Stretch
    ) -> Tensor:
        # The product has the weight's type, which its readers take, even if its gates are kept in a wider one.
        product = torch.empty_like(noise, dtype=weight.dtype)
        for z, location, value, result in _blocks(noise, log_alpha, weight, product):
            z.add_(location).mul_(1 / temperature).sigmoid_()
            z.mul_(stretch.high - stretch.low).add_(stretch.low).clamp_(0, 1)
            torch.mul(value, z, out=result)
        ctx.save_for_backward(weight)
        ctx.z, ctx.temperature, ctx.stretch = noise, temperature, stretch
        return product

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (weight,), z, ctx.z = ctx.saved_tensors, ctx.z, None
        if z is None:
            raise InputError(
                "the gates of single weights keep what they need for one backward pass, and this is the second "
                "through the same outputs.",
                fix="Call the network once for every backward().",
            )
        low, high = ctx.stretch
        scale, middle, half = 1 / ((high - low) * ctx.temperature), (low + high) / 2, (high - low) / 2
        of_weight = torch.empty_like(z, dtype=gradients[0].dtype)
        # With s = (z - low) / (high - low), dz/dlog_alpha is (high - low) s (1 - s) / temperature inside (0, 1). It
        # overwrites z.
        for slope, value, gradient, result in _blocks(z, weight, gradients[0], of_weight):
            torch.mul(gradient, slope, out=result)
            reached = torch.ops.aten.hardtanh_backward(gradient * value, slope, 0.0, 1.0)
            slope.sub_(middle).square_().sub_(half**2).mul_(reached).mul_(-scale)
        return of_weight.to(weight.dtype), z, None, None, None


class _ExpectedCost(torch.autograd.Function):
    """Equation 12 summed; the probabilities are recomputed in the backward pass rather than kept."""

    @staticmethod
    def forward(ctx: Any, log_alpha: Tensor, costs: float | Tensor, shift: float) -> Tensor:
        ctx.save_for_backward(log_alpha)
        ctx.costs, ctx.shift = costs, shift
        total = torch.zeros((), dtype=widest_float(log_alpha.device), device=log_alpha.device)
        if isinstance(costs, Tensor):
            for location, each in _blocks(log_alpha, constant_on(costs, log_alpha.device, log_alpha.dtype)):
                total += (location - shift).sigmoid_().mul_(each).sum()
            return total
        for (location,) in _blocks(log_alpha):
            total += (location - shift).sigmoid_().sum()
        return total * costs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (log_alpha,) = ctx.saved_tensors
        scale = gradients[0].to(log_alpha)
        result = torch.empty_like(log_alpha, memory_format=torch.contiguous_format)
        for location, slope in _blocks(log_alpha, result):
            probability = (location - ctx.shift).sigmoid_()
            torch.addcmul(probability, probability, probability, value=-1, out=slope).mul_(
                scale if isinstance(ctx.costs, Tensor) else scale * ctx.costs
            )
        if isinstance(ctx.costs, Tensor):
            result.mul_(constant_on(ctx.costs, result.device, result.dtype))
        return result, None, None


class _ExpectedSum(torch.autograd.Function):
    """A bilinear form of the probabilities of equation 12, which are computed block by block and never kept."""

    @staticmethod
    def forward(
        ctx: Any, log_alpha: Tensor, rows: Tensor, columns: Tensor, counts: Tensor | None, shift: float
    ) -> Tensor:
        ctx.save_for_backward(log_alpha, rows, columns, counts)
        ctx.shift = shift
        found = []
        for _, location, each in _rows_of(log_alpha, counts):
            probability = (location - shift).sigmoid_()
            found.append((probability if each is None else probability.mul_(each)) @ columns)
        ctx.of_rows = torch.cat(found)
        return ctx.of_rows.to(widest_float(log_alpha.device)) @ rows.to(widest_float(log_alpha.device))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        log_alpha, rows, columns, counts = ctx.saved_tensors
        scale = gradients[0].to(log_alpha)
        of_gates = torch.empty_like(log_alpha, memory_format=torch.contiguous_format)
        of_columns = torch.zeros_like(columns)
        for start, location, each in _rows_of(log_alpha, counts):
            probability = (location - ctx.shift).sigmoid_()
            slope = of_gates.view(len(rows), -1).narrow(0, start, len(location))
            here = rows.narrow(0, start, len(location))
            torch.addcmul(probability, probability, probability, value=-1, out=slope)
            slope.mul_((here * scale).unsqueeze(1)).mul_(columns)
            if each is not None:
                slope.mul_(each)
                probability.mul_(each)
            of_columns += here @ probability
        return of_gates, ctx.of_rows * scale, of_columns * scale, None, None


def _rows_of(log_alpha: Tensor, counts: Tensor | None) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """Yield the first row of each block of rows, and ``log_alpha`` and ``counts`` there as matrices."""
    location = log_alpha.reshape(len(log_alpha), -1)
    each = None if counts is None else counts.reshape(location.shape)
    step = len(location) if location.device.type != "cpu" else max(_BLOCK // max(location.shape[1], 1), 1)
    for start in range(0, len(location), step):
        size = min(step, len(location) - start)
        yield start, location.narrow(0, start, size), None if each is None else each.narrow(0, start, size)


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield flat parts of tensors of one shape that together fit in a processor's cache; outputs are contiguous."""
    flat = tuple(tensor.reshape(-1) for tensor in tensors)
    if flat[0].device.type != "cpu":  # a GPU has no such cache, and each part would be a launch
        yield flat
        return
    for start in range(0, flat[0].numel(), _BLOCK):
        yield tuple(part[start : start + _BLOCK] for part in flat)
