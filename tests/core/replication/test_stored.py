"""The scenarios of the simulation with the stores of real nodes."""

import pytest

from tests.core.replication.scenarios import SCENARIOS, judge
from tests.core.replication.stored import StoredSimulation


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_copies_in_the_stores_of_nodes_keep_every_invariant(scenario: str) -> None:
    assert judge(scenario, 1003, simulation=StoredSimulation).broken == ""
