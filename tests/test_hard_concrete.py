"""Hard concrete gates against numerical integration (scipy), Monte Carlo and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, special

from l0compress.gates.hard_concrete import (
    HardConcrete,
    Stretch,
    cdf,
    median,
    probability_nonzero,
    sample,
)

log_alphas = st.floats(-6, 6)
temperatures = st.floats(0.2, 1.5)


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def concrete_density(x: float, log_alpha: float, temperature: float) -> float:
    """Equation 5 of Maddison et al. 2017, in logit space to stay finite: the density of s = sigmoid(x)."""
    return temperature * special.expit(t := temperature * x - log_alpha) * special.expit(-t)


@given(log_alphas, temperatures)
def test_probability_of_a_nonzero_gate_is_the_integral_of_the_concrete_density(log_alpha, temperature):
    boundary = special.logit(0.1 / 1.2)
    expected, _ = integrate.quad(concrete_density, boundary, boundary + 400, args=(log_alpha, temperature), limit=400)
    actual = probability_nonzero(scalar(log_alpha), temperature=temperature)
    assert actual.item() == pytest.approx(expected, abs=1e-6)


@given(log_alphas, temperatures, st.floats(0.001, 0.999))
def test_the_cdf_inverts_the_sampler(log_alpha, temperature, uniform):
    z = sample(scalar(log_alpha), scalar(uniform), temperature=temperature)
    probability = cdf(z, scalar(log_alpha), temperature=temperature).item()
    if 0 < z < 1:
        assert probability == pytest.approx(uniform, abs=1e-9)
    else:
        assert probability >= uniform - 1e-9


@given(log_alphas, temperatures)
def test_the_cdf_at_zero_is_the_probability_of_an_exact_zero(log_alpha, temperature):
    at_zero = cdf(scalar(0.0), scalar(log_alpha), temperature=temperature)
    nonzero = probability_nonzero(scalar(log_alpha), temperature=temperature)
    assert (at_zero + nonzero).item() == pytest.approx(1, abs=1e-9)


@given(log_alphas, temperatures)
def test_the_median_gate_is_zero_exactly_where_zero_is_the_likelier_outcome(log_alpha, temperature):
    probability = probability_nonzero(scalar(log_alpha), temperature=temperature).item()
    if abs(probability - 0.5) > 1e-9:
        assert (median(scalar(log_alpha), temperature=temperature).item() > 0) == (probability > 0.5)


@pytest.mark.parametrize("log_alpha", [-3.0, -1.2, 0.0, 0.7, 2.94])
def test_monte_carlo_agrees_with_the_closed_forms(log_alpha):
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(400_000, generator=generator, dtype=torch.float64)
    z = sample(scalar(log_alpha), uniform, temperature=0.5)
    assert (z != 0).double().mean().item() == pytest.approx(
        probability_nonzero(scalar(log_alpha), temperature=0.5).item(), abs=0.004
    )
    assert (z <= 0.3).double().mean().item() == pytest.approx(
        cdf(scalar(0.3), scalar(log_alpha), temperature=0.5).item(), abs=0.004
    )
    assert z.median().item() == pytest.approx(median(scalar(log_alpha), temperature=0.5).item(), abs=0.01)


def test_the_mean_of_the_samples_is_one_minus_the_integral_of_the_cdf():
    expected, _ = integrate.quad(lambda v: 1 - cdf(scalar(v), scalar(0.4), temperature=0.5).item(), 0, 1)
    uniform = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    assert sample(scalar(0.4), uniform, temperature=0.5).mean().item() == pytest.approx(expected, abs=1e-5)


def test_gradients_match_finite_differences():
    log_alpha = torch.tensor([-1.0, 0.2, 1.0], dtype=torch.float64, requires_grad=True)
    uniform = torch.tensor([0.6, 0.4, 0.3], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a: sample(a, uniform, temperature=0.5), log_alpha)
    assert torch.autograd.gradcheck(lambda a: probability_nonzero(a, temperature=0.5), log_alpha)
    assert torch.autograd.gradcheck(lambda a: cdf(uniform, a, temperature=0.5), log_alpha)


def test_the_end_points_of_the_noise_give_finite_gradients():
    log_alpha = torch.zeros(2, requires_grad=True)
    sample(log_alpha, torch.tensor([0.0, 1.0]), temperature=0.5).sum().backward()
    assert log_alpha.grad is not None and torch.isfinite(log_alpha.grad).all()


def test_a_wider_stretch_makes_exact_zeros_likelier():
    narrow = probability_nonzero(scalar(0.0), temperature=0.5)
    wide = probability_nonzero(scalar(0.0), temperature=0.5, stretch=Stretch(-0.5, 1.5))
    assert wide < narrow


def test_the_module_samples_in_training_and_returns_the_median_in_evaluation():
    gates = HardConcrete(1000, log_alpha=0.0)
    torch.manual_seed(0)
    first, second = gates(), gates()
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(gates(), first)
    gates.eval()
    assert torch.equal(gates(), torch.full((1000,), 0.5))


def test_pretrained_networks_start_almost_open():
    probability = HardConcrete(1).probability_nonzero().item()
    assert probability == pytest.approx(1 / (1 + math.exp(-(2.94 + 0.5 * math.log(11)))), abs=1e-6)
    assert probability > 0.98
