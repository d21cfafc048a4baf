"""The hard concrete distribution: gates in [0, 1] that are exactly 0 or 1 with positive probability.

Source of every formula: Louizos, Welling and Kingma, "Learning Sparse Neural Networks through L0 Regularization",
ICLR 2018, equations 10 to 13. A binary concrete variable ``s`` with location ``log_alpha`` and temperature ``beta`` is
stretched to ``(gamma, zeta)``, which contains [0, 1], and clipped to [0, 1].

The functions are pure and elementwise; :class:`Gates` holds the one learned tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from l0compress.gates.decay import never_decay_
from l0compress.gates.defaults import OPEN_LOG_ALPHA, TEMPERATURE


class Stretch(NamedTuple):
    """The interval ``(gamma, zeta)`` that the concrete variable is stretched to before clipping to [0, 1]."""

    low: float
    high: float


STRETCH = Stretch(-0.1, 1.1)
_FINE = 4  # bytes of the coarsest type that log_alpha is kept in


def sample(log_alpha: Tensor, uniform: Tensor, *, temperature: float, stretch: Stretch = STRETCH) -> Tensor:
    """Map uniform noise to gate values (equations 10 and 11); differentiable in ``log_alpha``.

    ``uniform`` holds numbers in [0, 1] and has the shape of ``log_alpha`` or broadcasts against it.

    >>> import torch
    >>> sample(torch.zeros(3), torch.tensor([0.01, 0.5, 0.99]), temperature=0.5)
    tensor([0.0000, 0.5000, 1.0000])
    """
    # The end points would give infinities, whose gradient is NaN.
    tiny = torch.finfo(log_alpha.dtype).eps
    uniform = uniform.clamp(tiny, 1 - tiny)
    noise = uniform.log() - (-uniform).log1p()
    return _stretch_and_clip(torch.sigmoid((log_alpha + noise) / temperature), stretch)


def median(log_alpha: Tensor, *, temperature: float, stretch: Stretch = STRETCH) -> Tensor:
    """Return the median gate, used at test time: exactly 0 if ``probability_nonzero`` is at most one half.

    The paper's estimator (equation 13) omits the temperature and therefore disagrees with P(z != 0); the median
    is what :func:`sample` returns for ``uniform = 0.5``.

    >>> import torch
    >>> median(torch.tensor([-2.0, 0.0, 2.0]), temperature=0.5)
    tensor([0.0000, 0.5000, 1.0000])
    """
    return _stretch_and_clip(torch.sigmoid(log_alpha / temperature), stretch)


def probability_nonzero(log_alpha: Tensor, *, temperature: float, stretch: Stretch = STRETCH) -> Tensor:
    """Return P(z != 0), equation 12: ``sigmoid(log_alpha - temperature * log(-gamma / zeta))``.

    >>> import torch
    >>> boundary = TEMPERATURE * math.log(0.1 / 1.1)
    >>> probability_nonzero(torch.tensor(boundary), temperature=TEMPERATURE)
    tensor(0.5000)
    """
    return torch.sigmoid(log_alpha - temperature * math.log(-stretch.low / stretch.high))


def cdf(value: Tensor, log_alpha: Tensor, *, temperature: float, stretch: Stretch = STRETCH) -> Tensor:
    """Return P(z <= value), with its jumps at 0 and at 1 (the stretched distribution of section 2.3).

    >>> import torch
    >>> cdf(torch.tensor([-0.01, 0.5, 1.0]), torch.tensor(0.0), temperature=0.5)
    tensor([0.0000, 0.5000, 1.0000])
    """
    position = ((value - stretch.low) / (stretch.high - stretch.low)).clamp(0, 1)
    inside = torch.sigmoid(temperature * torch.logit(position) - log_alpha)
    return torch.where(value < 0, torch.zeros_like(inside), torch.where(value >= 1, torch.ones_like(inside), inside))


def _stretch_and_clip(concrete: Tensor, stretch: Stretch) -> Tensor:
    return (concrete * (stretch.high - stretch.low) + stretch.low).clamp(0, 1)


class Gates(nn.Module):
    """Learned gates: one location each, in ``log_alpha``, which is never decayed.

    Converting the module to bfloat16 leaves ``log_alpha`` in float32: a training step is smaller than the resolution of
    bfloat16.

    >>> Gates(torch.full((3,), 2.94)).bfloat16().log_alpha.dtype
    torch.float32
    """

    # What noise is drawn from: torch's global generator where it is None.
    generator: torch.Generator | None = None

    def __init__(self, log_alpha: Tensor, *, temperature: float = TEMPERATURE, stretch: Stretch = STRETCH) -> None:
        super().__init__()
        self.log_alpha = nn.Parameter(log_alpha)
        self.temperature = temperature
        self.stretch = stretch
        never_decay_(self)

    def median(self) -> Tensor:
        """Return the test-time gate values."""
        return median(self.log_alpha, temperature=self.temperature, stretch=self.stretch)

    def probability_nonzero(self) -> Tensor:
        """Return the probability that each gate is not zero."""
        return probability_nonzero(self.log_alpha, temperature=self.temperature, stretch=self.stretch)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        never_decay_(self)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Gates:
        def finely(tensor: Tensor) -> Tensor:
            converted = fn(tensor)
            coarse = converted.is_floating_point() and converted.element_size() < _FINE
            return tensor.to(converted.device) if coarse else converted

        return super()._apply(finely, recurse)


@contextmanager
def drawing_from(network: nn.Module, generator: torch.Generator) -> Iterator[None]:
    """Let the gates of ``network`` draw their noise from a generator of their own, on the gates' device.

    >>> gates, generator = HardConcrete(3), torch.Generator()
    >>> with drawing_from(gates, generator.manual_seed(7)):
    ...     one = gates()
    >>> with drawing_from(gates, generator.manual_seed(7)):
    ...     print(torch.equal(gates(), one))
    True
    """
    gates = [module for module in network.modules() if isinstance(module, Gates)]
    for each in gates:
        each.generator = generator
    try:
        yield
    finally:
        for each in gates:
            each.generator = None


class HardConcrete(Gates):
    """``num_gates`` independent hard concrete gates; calling it returns their values, shape ``(num_gates,)``.

    In training mode a value is a fresh sample from torch's global generator, in evaluation mode it is the median.

    >>> gates = HardConcrete(3).eval()
    >>> gates()
    tensor([1., 1., 1.], grad_fn=<ClampBackward1>)
    >>> gates.probability_nonzero().detach()
    tensor([0.9843, 0.9843, 0.9843])
    """

    def __init__(
        self,
        num_gates: int,
        *,
        log_alpha: float = OPEN_LOG_ALPHA,
        temperature: float = TEMPERATURE,
        stretch: Stretch = STRETCH,
    ) -> None:
        super().__init__(torch.full((num_gates,), float(log_alpha)), temperature=temperature, stretch=stretch)

    def forward(self) -> Tensor:
        """Return gate values of shape ``(num_gates,)``: a sample in training mode, the median in evaluation mode."""
        if not self.training:
            return self.median()
        return self.sample(torch.rand_like(self.log_alpha, generator=self.generator))

    def sample(self, uniform: Tensor) -> Tensor:
        """Return gate values for given uniform noise of shape ``(num_gates,)``."""
        return sample(self.log_alpha, uniform, temperature=self.temperature, stretch=self.stretch)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"num_gates={len(self.log_alpha)}, temperature={self.temperature}, stretch={tuple(self.stretch)}"
