"""What names and addresses may look like, however a value is made; `tests/node/test_heartbeat` has what is decoded."""

import pytest

from django_clusterstate.core.membership.heartbeat import Identity, MemberState, Observation, is_loopback


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1:4370", True),
        ("127.0.1.1:4370", True),
        ("[::1]:4370", True),
        ("[::ffff:127.0.0.1]:4370", True),
        ("localhost:4370", True),
        ("10.0.0.1:4370", False),
        ("[fe80::1%eth0]:4370", False),
        ("web-1:4370", False),
        ("localhost.example:4370", False),
    ],
)
def test_addresses_that_only_their_own_host_reaches_are_known(address: str, loopback: bool) -> None:
    assert is_loopback(address) is loopback
    assert Identity("a", bytes(16), address).address == address


@pytest.mark.parametrize(
    ("name", "address"), [("a\n", "a:1"), ("\x1b[1m", "a:1"), ("a", "a"), ("a", "a:0"), ("a", "a b:1")]
)
def test_values_of_this_process_keep_to_the_bounds_too(name: str, address: str) -> None:
    with pytest.raises(ValueError, match="a node's"):
        Identity(name, bytes(16), address)
    with pytest.raises(ValueError, match="a node's"):
        Observation(name, bytes(16), address, MemberState.ALIVE, 0, 0.0)
