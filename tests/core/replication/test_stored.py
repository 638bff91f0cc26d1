"""Scenarios of the simulation with the stores of real nodes; all of them: `make simulate`."""

import pytest

from tests.core.replication.scenarios import judge
from tests.core.replication.stored import StoredSimulation


@pytest.mark.parametrize("scenario", ["rolling replacement", "scale down", "partition", "behind", "crash and back"])
def test_copies_in_the_stores_of_nodes_keep_every_invariant(scenario: str) -> None:
    assert judge(scenario, 1003, simulation=StoredSimulation).broken == ""
