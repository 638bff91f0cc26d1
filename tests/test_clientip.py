"""Who the client is: what proxies of ours have written counts, and nothing else."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_clusterstate.clientip import Proxies, client_ip, ident_of, network_of, parse_hop

OURS = Proxies.parse(["10.0.0.0/8", "::1", "fd00::/8"])
TWO = Proxies.parse(["2"])
SOCKET = Proxies.parse(["unix", "10.0.0.0/8"])


def meta(remote: str, forwarded: str) -> dict[str, str]:
    return {"REMOTE_ADDR": remote, "HTTP_X_FORWARDED_FOR": forwarded}


@pytest.mark.parametrize(
    ("proxies", "remote", "forwarded", "client"),
    [
        (OURS, "10.0.0.1", "1.2.3.4", "1.2.3.4"),
        (OURS, "10.0.0.1", "9.9.9.9, 1.2.3.4", "1.2.3.4"),
        (OURS, "10.0.0.1", "9.9.9.9, 1.2.3.4 , 10.0.0.2", "1.2.3.4"),
        (OURS, "::ffff:10.0.0.1", "1.2.3.4,::ffff:10.0.0.2", "1.2.3.4"),
        (OURS, "10.0.0.1", "1.2.3.4:5678, 10.0.0.2:80", "1.2.3.4:5678"),
        (OURS, "::1", "[2001:db8::1]:443, [fd00::2%eth0]:80", "[2001:db8::1]:443"),
        (OURS, "5.6.7.8", "1.2.3.4", "5.6.7.8"),  # it is no proxy of ours, and may say what it likes
        (OURS, "10.0.0.1", "", "10.0.0.1"),
        (OURS, "10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),  # one of our own hosts asks
        (OURS, "10.0.0.1", "1.2.3.4, unknown", "10.0.0.1"),
        (OURS, "10.0.0.1", "1.2.3.4, unknown, 10.0.0.2", "10.0.0.2"),
        (OURS, "10.0.0.1", " , ,", "10.0.0.1"),
        (TWO, "127.0.0.1", "9.9.9.9, 1.2.3.4, 5.6.7.8", "1.2.3.4"),
        (TWO, "127.0.0.1", "1.2.3.4, 5.6.7.8", "1.2.3.4"),
        (TWO, "127.0.0.1", "5.6.7.8", "5.6.7.8"),
        (TWO, "127.0.0.1", "", "127.0.0.1"),
        (SOCKET, "", "1.2.3.4", "1.2.3.4"),
        (SOCKET, "", "9.9.9.9, 1.2.3.4, 10.0.0.2", "1.2.3.4"),
        (SOCKET, "", "", ""),
        (OURS, "", "1.2.3.4", ""),
    ],
)
def test_the_client_is_the_last_that_no_proxy_of_ours_is(
    proxies: Proxies, remote: str, forwarded: str, client: str
) -> None:
    assert client_ip(meta(remote, forwarded), proxies) == client


@given(st.text(alphabet="0123456789.:,[]% af", max_size=40))
def test_what_a_client_says_itself_changes_nothing(said: str) -> None:
    assert client_ip(meta("10.0.0.1", f"{said}, 1.2.3.4"), OURS) == "1.2.3.4"
    assert client_ip(meta("127.0.0.1", f"{said}, 1.2.3.4, 5.6.7.8"), TWO) == "1.2.3.4"
    assert client_ip(meta("1.2.3.4", said), Proxies()) == "1.2.3.4"


@given(st.text(), st.text())
def test_nothing_raises(remote: str, forwarded: str) -> None:
    for proxies in (OURS, TWO, SOCKET, Proxies()):
        client_ip(meta(remote, forwarded), proxies)
    assert client_ip({}, OURS) == ""


@given(st.ip_addresses(), st.sampled_from(["{}", "[{}]", "[{}]:80", "{}%eth0"]))
def test_an_address_is_read_with_what_proxies_add(address: ipaddress.IPv4Address, written: str) -> None:
    assert parse_hop(written.format(address)) == (getattr(address, "ipv4_mapped", None) or address)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("10.1.2.3:80", "10.1.2.3"),
        ("::1", "::/64"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("[2001:db8:1:2:3::4]:80", "2001:db8:1:2::/64"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
    ],
)
def test_what_is_limited_of_an_address(address: str, network: str) -> None:
    assert network_of(address) == network


def test_who_is_limited_is_a_network_or_what_stands_in_the_place_of_one() -> None:
    assert ident_of(meta("10.0.0.1", "2001:db8::1"), OURS) == "2001:db8::/64"
    assert ident_of(meta("", "1.2.3.4"), OURS) == ""


@pytest.mark.parametrize("text", ["10.0.0.1/8", "proxy", "-1", "1.5", ""])
def test_what_is_no_proxy_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Proxies.parse([text])


def test_a_number_stands_alone() -> None:
    with pytest.raises(ValueError, match="does not appear to be"):
        Proxies.parse(["2", "proxy"])
    assert not Proxies.parse([])
    assert not Proxies.parse(["0"])
    assert Proxies.parse(["::ffff:10.0.0.0/104"]).trusts("10.1.1.1")
