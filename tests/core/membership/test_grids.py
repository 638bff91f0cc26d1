"""Small runs of the grids that `make grids` runs in full."""

import pytest

from tests.core.membership.grids import FAULTS, has_false_down, lifeguard, measure, rapid


@pytest.mark.parametrize("starved", [0.0, 0.5])
def test_starved_nodes_are_not_declared_down(starved: float) -> None:
    assert not has_false_down((6, starved, 0.05, 1))


@pytest.mark.parametrize(
    ("fault", "views", "moved"), [("crash", 2, 0.1), ("ingress cut, 20 s of 40", 2, 0.5), ("egress loss of 80 %", 1, 0)]
)
def test_faults_of_one_node_move_its_keys_only(fault: str, views: int, moved: float) -> None:
    found = measure((10, fault, 1))
    assert found.views == views
    assert found.moved == pytest.approx(moved, rel=0.1)
    assert 15 < found.messages < 25


def test_grids_are_tables() -> None:
    assert len(list(lifeguard([2], 1, 1))) == 2 + 4 + 1
    assert len(list(rapid([2], 1, 1))) == 2 + len(FAULTS)
