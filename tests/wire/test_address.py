"""Parsing of addresses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_clusterstate.wire.address import TcpAddress, UnixAddress, parse_address, parse_ip, parse_tcp


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.5:4370", TcpAddress("10.0.0.5", 4370)),
        (" web-1.internal:1 ", TcpAddress("web-1.internal", 1)),
        ("[::1]:65535", TcpAddress("::1", 65535)),
        ("::1:4370", TcpAddress("::1", 4370)),
        (":4370", TcpAddress("", 4370)),
    ],
)
def test_host_and_port_are_read(text: str, address: TcpAddress) -> None:
    assert parse_tcp(text) == address
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["", "host", "host:", "host:0", "host:65536", "host:-1", "host:4e3", "host:٤٣٧٠", "4370"]
)
def test_invalid_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"write HOST:PORT, for example 10\.0\.0\.5:4370"):
        parse_tcp(text)


@pytest.mark.parametrize("text", ["10.0.0.5:4370", "[fd00::1]:1", "127.0.0.1:1"])
def test_ip_addresses_and_host_names_are_distinguished(text: str) -> None:
    assert parse_ip(text) == parse_tcp(text)


@pytest.mark.parametrize("text", ["web-1:4370", "localhost:1", ":1", "10.0.0:1", "nonsense"])
def test_host_name_is_not_an_advertised_address(text: str) -> None:
    with pytest.raises(ValueError, match="is not an address"):
        parse_ip(text)


@pytest.mark.parametrize("text", ["\0name/x", "/run/\0node.sock", "a\0b:1"])
def test_abstract_socket_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="abstract socket names are not supported"):
        parse_address(text)


@pytest.mark.parametrize(
    ("host", "loopback", "wildcard"),
    [
        ("127.0.1.1", True, False), ("::1", True, False), ("::ffff:127.0.0.1", True, False), ("localhost", True, False),
        ("0.0.0.0", False, True), ("::", False, True), ("0:0::0", False, True), ("::ffff:0.0.0.0", False, True),
        ("", False, True), ("10.0.0.1", False, False), ("web-1", False, False),
    ],
)  # fmt: skip
def test_loopback_and_wildcard_addresses_are_recognized_in_every_notation(
    host: str, loopback: bool, wildcard: bool
) -> None:
    assert TcpAddress(host, 1).is_loopback == loopback
    assert TcpAddress(host, 1).is_wildcard == wildcard


def test_text_with_a_slash_is_a_path() -> None:
    assert parse_address("/run/node.sock") == UnixAddress("/run/node.sock")
    assert parse_address("./node:1.sock") == UnixAddress("./node:1.sock")
    assert str(UnixAddress("/run/node.sock")) == "/run/node.sock"


@given(st.ip_addresses().map(str), st.integers(1, 65535))
def test_text_of_an_address_parses_to_the_address(host: str, port: int) -> None:
    address = TcpAddress(host, port)
    assert parse_tcp(str(address)) == address


@pytest.mark.parametrize(
    ("host", "loopback", "wildcard"),
    [
        ("127.0.0.1", True, False),
        ("127.8.8.8", True, False),
        ("::1", True, False),
        ("localhost", True, False),
        ("0.0.0.0", False, True),
        ("::", False, True),
        ("", False, True),
        ("10.0.0.5", False, False),
        ("localhost.example.org", False, False),
    ],
)
def test_addresses_that_other_hosts_cannot_reach_are_recognized(host: str, loopback: bool, wildcard: bool) -> None:
    address = TcpAddress(host, 4370)
    assert (address.is_loopback, address.is_wildcard) == (loopback, wildcard)
