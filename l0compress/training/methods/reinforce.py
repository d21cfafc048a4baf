"""Reinforcement learning: a policy over the densities of all groups, by its gradient, on the loss after repair.

``mu <- mu + rate (r - b) (a - mu)`` and ``log sigma <- log sigma + rate (r - b) ((a - mu)^2 / sigma^2 - 1)``, where
``a ~ N(mu, sigma^2)`` are the logits of the densities, ``r`` is minus the loss, and ``b`` a moving average of it. The
rates of ``mu`` go with ``sigma^2``, as Williams has them. Source: Williams, "Simple statistical gradient-following
algorithms for connectionist reinforcement learning", Machine Learning 8, 1992, section 6; on densities of layers with
this reward: He et al., "AMC: AutoML for Model Compression and Acceleration on Mobile Devices", ECCV 2018.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from l0compress.training.methods.density_search import LEAST, DensitySearch, Proposer, Trials

_RATE, _SPREAD_RATE, _MEMORY = 0.3, 0.05, 0.8
_SPREAD, _LEAST_SPREAD, _MOST_SPREAD = 0.7, 0.1, 1.5
_EDGE, _FURTHEST = 1e-3, 2.0


@dataclass(frozen=True, eq=False)
class Policy:
    """A Gaussian over the logits of densities, and what is expected of it.

    Attributes:
        mean, spread: float64 (groups,): mu and sigma.
        baseline: the moving average of rewards.
        scale: that of how far rewards are off it, which the advantage is divided by; 0 before there is any.
    """

    mean: Tensor
    spread: Tensor
    baseline: float
    scale: float = 0.0

    @classmethod
    def about(cls, densities: Tensor, reward: float) -> Policy:
        """The first one: about densities whose reward is known."""
        # Further out a step of the logits hardly changes the densities, and nothing could be learned.
        return cls(logits_of(densities).clamp(-_FURTHEST, _FURTHEST), torch.full_like(densities, _SPREAD), reward)

    def learned(self, action: Tensor, reward: float) -> Policy:
        """The policy after one step along the gradient of its expected reward, estimated from one action.

        >>> policy = Policy(torch.zeros(1).double(), torch.ones(1).double(), baseline=-2.0)
        >>> better = policy.learned(torch.ones(1).double(), -1.0)  # one above the mean, and better than expected
        >>> better.mean.tolist(), better.spread.tolist(), round(better.baseline, 3)
        ([0.3], [1.0], -1.8)
        """
        advantage = reward - self.baseline
        scale = abs(advantage) if self.scale == 0 else _MEMORY * self.scale + (1 - _MEMORY) * abs(advantage)
        gained = max(-2.0, min(2.0, advantage / scale)) if scale > 0 else 0.0
        off = action - self.mean
        spread = self.spread.log() + _SPREAD_RATE * gained * ((off / self.spread).square() - 1)
        return Policy(
            self.mean + _RATE * gained * off,
            spread.exp().clamp(_LEAST_SPREAD, _MOST_SPREAD),
            _MEMORY * self.baseline + (1 - _MEMORY) * reward,
            scale,
        )

    def drawn(self, generator: torch.Generator) -> Tensor:
        """An action."""
        return self.mean + self.spread * torch.randn(self.mean.shape, generator=generator, dtype=torch.float64)


def logits_of(densities: Tensor) -> Tensor:
    """The logits of where densities stand between LEAST and 1; what is at an end stands a little inside."""
    return ((densities - LEAST) / (1 - LEAST)).clamp(_EDGE, 1 - _EDGE).logit()


def densities_at(action: Tensor) -> Tensor:
    """The densities that an action is.

    >>> [round(density, 5) for density in densities_at(logits_of(torch.tensor([0.3, 0.9]))).tolist()]
    [0.3, 0.9]
    """
    return LEAST + (1 - LEAST) * action.sigmoid()


def policy_after(trials: Trials) -> Policy:
    """What is learned from all trials, in their order. A loss that is not finite counts as the worst that was."""
    worst = max((loss for loss in trials.losses.tolist() if math.isfinite(loss)), default=0.0)
    rewards = [-min(loss, worst) for loss in trials.losses.tolist()]
    policy = Policy.about(trials.densities[0], rewards[0])
    for densities, reward in zip(trials.densities[1:], rewards[1:], strict=True):
        policy = policy.learned(logits_of(densities), reward)
    return policy


class PolicyGradient(Proposer):
    """Draws from the policy that the trials so far have taught."""

    def propose(self, trials: Trials, *, seed: int) -> Tensor:
        draws = torch.Generator().manual_seed(seed * 1_000_003 + len(trials))
        return densities_at(policy_after(trials).drawn(draws))


class Reinforce(DensitySearch):
    """Densities by policy gradient."""

    name = "reinforce"

    def make_proposer(self) -> Proposer:
        return PolicyGradient()
