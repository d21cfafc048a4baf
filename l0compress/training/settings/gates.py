"""The constants of the phase in which gates are learned."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from l0compress.gates.defaults import OPEN_LOG_ALPHA, TEMPERATURE
from l0compress.training.schema import check_settings, setting


@dataclass(frozen=True)
class GateSettings:
    """Constants of the gated phase.

    Attributes:
        share: the phase's part of the epochs, from the first on, in whole ones; of a single epoch, of its steps.
        log_alpha: where gates start; 2.94 is open with a probability of 98 %.
        temperature: beta of the hard concrete distribution.
        learning_rate: Adam's rate for log_alpha in a phase of ``full_steps`` steps or more, see :meth:`rate_for`.
        multiplier_rate: Adam's rate for the multiplier in a phase of ``full_multiplier_steps`` steps or more.
        ramp_share: the part of the phase in which the target falls to the budget.
        weight_rate_share: the weights' rate at the start, as a share of the run's learning rate.
        weight_rate_floor: the weights' rate at the end, as a share of that start.
        compact_below: moves that are open with a lower probability count as surely shut, and are removed in training.
        compact_every: steps from one look for such moves to the next; there is one after every epoch, too.
        compact_gain: how many times what the removal costs it has to save in the steps that are left, see
            :mod:`~l0compress.training.compaction`; 0 removes whatever is shut.
        highest_rate, highest_multiplier_rate: how far the two rates are raised in a short phase. Faster gates close at
            random; where they are too slow to arrive, hardening still has their order.
        magnitude_slope: how much of their order gates on single weights get from the magnitudes of the weights, in a
            phase of ``full_steps`` steps or fewer, see :meth:`slope_for`.
        many_steps: in a phase of so many steps or more, gates of moves start open and all alike, in a shorter one near
            the budget and in the order of a score.
        few_steps, few_share, fewest_steps: where the phase has fewer than ``few_steps`` steps, gates in the order of a
            score get ``few_share`` of all steps of the run, but ``fewest_steps`` at least. The rest is trained on.
    """

    share: float = field(default=1 / 3, metadata=setting(least=0, most=1))
    log_alpha: float = field(default=OPEN_LOG_ALPHA, metadata=setting(least=-math.inf))
    temperature: float = field(default=TEMPERATURE, metadata=setting(above=0))
    learning_rate: float = field(default=0.015, metadata=setting(above=0))
    multiplier_rate: float = field(default=0.05, metadata=setting(above=0))
    ramp_share: float = field(default=0.6, metadata=setting(least=0, most=1))
    weight_rate_share: float = field(default=2 / 3, metadata=setting(above=0))
    weight_rate_floor: float = field(default=0.3, metadata=setting(above=0))
    compact_below: float = field(default=0.01, metadata=setting(above=0))
    compact_every: int = field(default=10, metadata=setting(least=1))
    compact_gain: float = field(default=4.0, metadata=setting(least=0))
    full_steps: int = field(default=2000, metadata=setting(above=0))
    full_multiplier_steps: int = field(default=1000, metadata=setting(above=0))
    highest_rate: float = field(default=0.1, metadata=setting(above=0))
    highest_multiplier_rate: float = field(default=0.5, metadata=setting(above=0))
    magnitude_slope: float = field(default=1.0, metadata=setting(least=0))
    many_steps: int = field(default=1000, metadata=setting(least=0))
    few_steps: int = field(default=200, metadata=setting(least=0))
    few_share: float = field(default=1 / 16, metadata=setting(least=0, most=1))
    fewest_steps: int = field(default=20, metadata=setting(least=1))

    def __post_init__(self) -> None:
        check_settings(self)

    def are_many(self, num_steps: int) -> bool:
        """Whether gates can find their order by themselves in so many steps.

        >>> GateSettings().are_many(200), GateSettings().are_many(2000)
        (False, True)
        """
        return num_steps >= self.many_steps

    def steps_in_order(self, num_steps: int, run_steps: int) -> int:
        """What gates in the order of a score get of a phase of ``num_steps`` steps, in a run of ``run_steps``.

        >>> settings = GateSettings()
        >>> [settings.steps_in_order(*steps) for steps in ((300, 900), (160, 640), (54, 216), (9, 36))]
        [300, 40, 20, 9]
        """
        if num_steps >= self.few_steps:
            return num_steps
        return min(num_steps, max(self.fewest_steps, round(run_steps * self.few_share)))

    def rate_for(self, num_steps: int) -> float:
        """The gates' rate in a phase of ``num_steps`` steps: in a short one they travel as far as in a long one.

        >>> GateSettings().rate_for(6000), GateSettings().rate_for(1000)
        (0.015, 0.03)
        """
        raised = min(self.learning_rate * self.full_steps / num_steps, self.highest_rate)
        return max(self.learning_rate, raised)

    def slope_for(self, num_steps: int) -> float:
        """The slope that gates on weights start with: the less time they have to find an order, the more it is given.

        >>> GateSettings().slope_for(1000), GateSettings().slope_for(8000)
        (1.0, 0.25)
        """
        return self.magnitude_slope * min(1.0, self.full_steps / num_steps)

    def multiplier_rate_for(self, num_steps: int) -> float:
        """The multiplier's rate in a phase of ``num_steps`` steps.

        >>> GateSettings().multiplier_rate_for(6000), GateSettings().multiplier_rate_for(500)
        (0.05, 0.1)
        """
        raised = min(self.multiplier_rate * self.full_multiplier_steps / num_steps, self.highest_multiplier_rate)
        return max(self.multiplier_rate, raised)
