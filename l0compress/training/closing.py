"""Closing the gap between a model of a resource and the resource: what was decided is measured, and decided anew.

requires: a way to decide within limits, and to carry a decision out.
ensures:  a decision that keeps to what is measured, not only to what was predicted, as nearly as whole channels allow.

A model of time is a few hundredths off. The bound that the model is held to is therefore moved by as much as the
measurement of what it led to differs from the prediction, until the measurement is right: the secant method, with
bisection where the steps of kernels make it overshoot.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from l0compress.errors import TargetMissedError
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.cut.plan import KeepPlan
from l0compress.training.limits import Limits

# How far below and above the bound a measurement may be before it is tried again, and how often.
BELOW, ABOVE, TRIALS = 0.96, 1.01, 6
STRIDE = 1.5

Decide = Callable[[Limits], KeepPlan]
CarryOut = Callable[[KeepPlan], CapturedGraph]


def closed(decide: Decide, carry_out: CarryOut, limits: Limits) -> KeepPlan:
    """The decision within ``limits`` whose measurement comes nearest to them.

    Where nothing in ``limits`` is an estimate, it is ``decide(limits)``, and nothing is measured.

    Args:
        decide: the plan within any limits on the same resources.
        carry_out: the small graph of a plan; its weights do not matter.

    Raises:
        TargetMissedError: as ``decide``. Where only a corrected bound is out of reach, the nearest plan is returned.
    """
    plan = decide(limits)
    if not any(bound.resource.is_estimate for bound in limits.bounds):
        return plan
    best, best_share, scale = plan, math.inf, 1.0
    fits, exceeds = 0.0, math.inf
    for trial in range(TRIALS):
        share = max(_shares(plan, carry_out(plan), limits))
        if _is_better(share, best_share):
            best, best_share = plan, share
        if BELOW <= share <= ABOVE or trial == TRIALS - 1:
            break
        fits, exceeds = (max(fits, scale), exceeds) if share <= ABOVE else (fits, min(exceeds, scale))
        scale = _next(scale / share, fits, exceeds)
        try:
            plan = decide(_scaled(limits, scale))
        except TargetMissedError:
            break
    return best


def _next(corrected: float, fits: float, exceeds: float) -> float:
    """The scale of the bound to try next: the corrected one, or halfway between what fits and what does not.

    >>> _next(1.1, 1.0, 1.2), round(_next(1.3, 1.0, 1.2), 4), _next(0.2, 0.0, 1.0)
    (1.1, 1.0954, 0.6666666666666666)
    """
    if 0 < fits < exceeds < math.inf and not fits < corrected < exceeds:
        return math.sqrt(fits * exceeds)
    known = exceeds if fits == 0 else fits
    # A prediction that is off by more is not believed at once.
    return min(max(corrected, known / STRIDE), known * STRIDE)


def _scaled(limits: Limits, scale: float) -> Limits:
    """The limits with every estimate's bound moved."""
    return limits.at(
        [
            min(round(bound.most * scale), bound.resource.dense) if bound.resource.is_estimate else bound.most
            for bound in limits.bounds
        ]
    )


def _shares(plan: KeepPlan, small: CapturedGraph, limits: Limits) -> list[float]:
    """What a plan uses of each bound; measured, where that is an estimate."""
    return [
        (bound.resource.used_by(small, plan.keep) if bound.resource.is_estimate else bound.resource.cost(plan.keep))
        / bound.most
        for bound in limits.bounds
    ]


def _is_better(share: float, than: float) -> bool:
    """Whether a share of what is allowed is better than another one: within it, and then as near to it as can be.

    >>> _is_better(0.9, 1.2), _is_better(0.97, 0.9), _is_better(1.2, 1.1), _is_better(1.005, 0.9)
    (True, True, False, True)
    """
    fits, than_fits = share <= ABOVE, than <= ABOVE
    if fits != than_fits:
        return fits
    return share > than if fits else share < than
