"""A part of what `make simulate` runs over thousands of seeds."""

import pytest

from tests.core.membership.judge import SCENARIOS, judge


@pytest.mark.parametrize("seed", [1000, 1001])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_membership_keeps_every_invariant(scenario: str, seed: int) -> None:
    assert judge(scenario, seed).broken == ""


@pytest.mark.parametrize("scenario", ["lossy", "flapping", "swarm"])
def test_same_seed_gives_the_same_trace(scenario: str) -> None:
    assert judge(scenario, 7).trace == judge(scenario, 7).trace != judge(scenario, 8).trace
