"""Who the client is: what proxies of ours have written counts, and nothing else."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_clusterstate.clientip import THIS_HOST, Proxies, client_ip, network_of, parse_hop

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
        (TWO, "127.0.0.1", "1.2.3.4, unknown, 5.6.7.8", "5.6.7.8"),
        (TWO, "127.0.0.1", "unknown, 5.6.7.8", "5.6.7.8"),
        (TWO, "127.0.0.1", "9.9.9.9, _hidden, unknown", "127.0.0.1"),
        (TWO, "127.0.0.1", "unknown", "127.0.0.1"),
        (TWO, "127.0.0.1", "1.2.3.4, unknown", "1.2.3.4"),
        (TWO, "", "1.2.3.4, 5.6.7.8", "1.2.3.4"),
        (TWO, "", "9.9.9.9, _hidden, unknown", THIS_HOST),
        (TWO, "", "", ""),
        (SOCKET, "", "1.2.3.4, unknown", THIS_HOST),
        (SOCKET, "", "unix:", THIS_HOST),
        (SOCKET, "", "unknown, 10.0.0.2", "10.0.0.2"),
        (SOCKET, "", "", ""),
        (OURS, "", "1.2.3.4", ""),
        (OURS, "", "unknown", ""),
    ],
)
def test_the_client_is_the_last_that_no_proxy_of_ours_is(
    proxies: Proxies, remote: str, forwarded: str, client: str
) -> None:
    assert client_ip(meta(remote, forwarded), proxies) == client


@given(st.text(alphabet="0123456789.:,[]% af", max_size=40))
def test_entries_of_the_client_are_ignored(said: str) -> None:
    assert client_ip(meta("10.0.0.1", f"{said}, 1.2.3.4"), OURS) == "1.2.3.4"
    assert client_ip(meta("127.0.0.1", f"{said}, 1.2.3.4, 5.6.7.8"), TWO) == "1.2.3.4"
    assert client_ip(meta("1.2.3.4", said), Proxies()) == "1.2.3.4"


@given(
    st.sampled_from([OURS, TWO, SOCKET, Proxies()]),
    st.ip_addresses() | st.just("10.0.0.1"),
    st.text() | st.text(alphabet="0123456789.:,[]% af_", max_size=40),
)
def test_no_header_of_a_clients_leaves_it_without_an_address(proxies: Proxies, remote: object, said: str) -> None:
    network_of(client_ip(meta(str(remote), said), proxies))
    if proxies.unix and said.replace(",", "").strip():
        network_of(client_ip(meta("", said), proxies))


@given(st.sampled_from([OURS, TWO]), st.text(alphabet="0123456789.:,[]% af", max_size=40), st.integers(1, 2))
def test_invalid_entry_of_a_proxy_is_not_replaced_by_one_of_the_client(proxies: Proxies, said: str, junk: int) -> None:
    """Two proxies of ours, of which one or both write no address: the client is the last that is known."""
    written = ["unknown", "10.0.0.2"] if junk == 1 else ["unknown", "_hidden"]
    found = client_ip(meta("10.0.0.1", ",".join([said, *written])), proxies)
    assert found == ("10.0.0.2" if junk == 1 else "10.0.0.1")


@given(st.text(), st.text())
def test_nothing_raises(remote: str, forwarded: str) -> None:
    for proxies in (OURS, TWO, SOCKET, Proxies()):
        client_ip(meta(remote, forwarded), proxies)
    assert client_ip({}, OURS) == ""


@given(st.ip_addresses(), st.sampled_from(["{}", "[{}]", "[{}]:80", "{}%eth0"]))
def test_address_is_parsed_without_the_port_and_zone_of_proxies(address: ipaddress.IPv4Address, written: str) -> None:
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
def test_address_is_limited_by_its_network(address: str, network: str) -> None:
    assert network_of(address) == network


@pytest.mark.parametrize("text", ["10.0.0.1/8", "proxy", "-1", "1.5", ""])
def test_wrong_proxy_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Proxies.parse([text])


def test_a_number_stands_alone() -> None:
    with pytest.raises(ValueError, match="does not appear to be"):
        Proxies.parse(["2", "proxy"])
    assert not Proxies.parse([])
    assert not Proxies.parse(["0"])
    assert Proxies.parse(["::ffff:10.0.0.0/104"]).trusts("10.1.1.1")
