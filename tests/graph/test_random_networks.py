"""Random networks and random plans: in float64, what is shrunk equals what is masked, and costs what was predicted.

``make fuzz`` looks at thousands of them.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from random_networks import Draw, Network, Tally, check, draws, image_networks, token_networks

pytestmark = pytest.mark.slow

ORDINARY = settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)


@ORDINARY
@given(image_networks(), draws())
def test_random_image_networks(network: Network, draw: Draw) -> None:
    check(network, draw, Tally())


@ORDINARY
@given(token_networks(), draws())
def test_random_token_networks(network: Network, draw: Draw) -> None:
    check(network, draw, Tally())
