"""The address that a node tells the others: an IP address that they can reach, or a warning."""

import asyncio
import logging
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from django_clusterstate.node import advertise, network_interfaces
from django_clusterstate.node.advertise import AddressWatch, Advertised, Finder, is_local_name, wait_for_address
from django_clusterstate.node.network_interfaces import has_address, is_reachable, own_address
from django_clusterstate.wire.address import TcpAddress, parse_tcp
from testproject.processes import wait_until

DEBIAN = {"web-1": ("127.0.1.1",), "localhost": ("::1", "127.0.0.1")}
DNS = {"web-1": ("fd00::1", "10.0.0.1"), "nat": ("198.51.100.7",), "mixed": ("127.0.1.1", "10.0.0.1")}


def find(bind: str, given: str = "", peers: Sequence[str] = (), names: dict[str, tuple[str, ...]] = DNS) -> Advertised:
    return Finder(
        parse_tcp(bind),
        parse_tcp(given) if given else None,
        tuple(map(parse_tcp, peers)),
        {**DEBIAN, **names}.__getitem__,
    ).find()


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A host with an address of each family. What it was asked for."""
    asked: list[object] = []

    def own(families: Sequence[int], peers: Sequence[TcpAddress] = ()) -> str | None:
        asked.append((tuple(map(int, families)), [str(peer) for peer in peers]))
        return {2: "10.0.0.5", 10: "fd00::5"}[int(families[0])]

    monkeypatch.setattr(advertise, "own_address", own)
    return asked


@pytest.mark.parametrize(
    ("bind", "given", "address"),
    [
        ("10.0.0.1:1", "", "10.0.0.1:1"),
        ("10.0.0.1:1", "192.0.2.1:2", "192.0.2.1:2"),
        ("[fd00:0::1]:1", "", "[fd00::1]:1"),
        ("0.0.0.0:1", "", "10.0.0.5:1"),
        ("[::]:1", "", "[fd00::5]:1"),
        (":1", "", "10.0.0.5:1"),
        ("0:1", "", "10.0.0.5:1"),
        ("10.0.0.1:1", "0.0.0.0:2", "10.0.0.1:2"),
        ("0.0.0.0:1", "nat:2", "198.51.100.7:2"),
        ("0.0.0.0:1", "web-1:2", "10.0.0.1:2"),
        ("[::]:1", "web-1:2", "[fd00::1]:2"),
        (":1", "web-1:2", "[fd00::1]:2"),
        ("0.0.0.0:1", "mixed:2", "10.0.0.1:2"),
        ("web-1:1", "", "[fd00::1]:1"),
        ("127.0.0.1:1", "", "127.0.0.1:1"),
        ("localhost:1", "", "[::1]:1"),
        ("0.0.0.0:1", "localhost:1", "127.0.0.1:1"),
    ],
)
@pytest.mark.usefixtures("host")
def test_a_node_advertises_an_ip_address(bind: str, given: str, address: str) -> None:
    assert find(bind, given) == Advertised(parse_tcp(address))


@pytest.mark.parametrize(("bind", "address"), [("0.0.0.0:1", "10.0.0.5:2"), ("10.0.0.9:1", "10.0.0.9:2")])
@pytest.mark.usefixtures("host")
def test_a_name_that_is_loopback_at_home_is_replaced_by_the_interfaces_address(bind: str, address: str) -> None:
    assert find(bind, "web-1:2", names=DEBIAN) == Advertised(parse_tcp(address))


def test_a_node_that_listens_on_such_a_name_alone_says_so() -> None:
    found = find("web-1:1", names=DEBIAN)
    assert found.address == TcpAddress("127.0.1.1", 1)
    assert "BIND: web-1 resolves to 127.0.1.1 on this host, which others cannot reach" in found.problem


def test_the_way_to_the_peers_of_a_list_is_looked_at_first(host: list[object]) -> None:
    find("0.0.0.0:1", peers=["10.0.0.2:1"])
    assert host == [((2,), ["10.0.0.2:1"])]


@pytest.mark.parametrize(
    ("bind", "loopback"), [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:1", "[::1]:1"), (":1", "127.0.0.1:1")]
)
def test_a_host_without_another_address_says_so(monkeypatch: pytest.MonkeyPatch, bind: str, loopback: str) -> None:
    monkeypatch.setattr(advertise, "own_address", lambda families, peers: None)
    found = find(bind)
    assert found.address == parse_tcp(loopback)
    assert "this host has no other address" in found.problem


# -- interfaces ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "reachable"),
    [
        ("10.0.0.1", True), ("fd00::1", True), ("169.254.1.1", True), ("127.0.1.1", False), ("::1", False),
        ("0.0.0.0", False), ("fe80::1", False), ("::ffff:127.0.0.1", False), ("::ffff:10.0.0.1", True), ("web", False),
    ],
)  # fmt: skip
def test_only_some_addresses_can_be_reached_by_others(host: str, reachable: bool) -> None:
    assert is_reachable(host) == reachable


def test_this_host_has_the_addresses_that_it_finds() -> None:
    for family in (2, 10):
        found = own_address((family,))
        assert found is None or (has_address(found) and is_reachable(found))
    assert has_address("127.0.0.1")
    assert not has_address("192.0.2.1")


def test_no_name_is_resolved_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(network_interfaces, "_source", lambda family, host: asked.append(host))
    own_address((2,), [TcpAddress("web-1", 1), TcpAddress("10.0.0.2", 1)])
    assert asked == ["10.0.0.2", "192.0.2.1"]


def test_an_own_address_among_the_peers_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = {"10.0.0.2": "172.17.0.1", "10.0.0.5": "10.0.0.5", "192.0.2.1": "172.17.0.1"}
    monkeypatch.setattr(network_interfaces, "_source", lambda family, host: sources[host])
    assert own_address((2,), [TcpAddress("10.0.0.2", 1), TcpAddress("10.0.0.5", 1)]) == "10.0.0.5"
    assert own_address((2,), [TcpAddress("10.0.0.2", 1)]) == "172.17.0.1"


def test_a_lasting_ipv6_address_comes_before_a_temporary_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = tmp_path / "if_inet6"
    table.write_text(
        "fe800000000000000000000000000001 02 40 20 80 eth0\n"
        "fd000000000000000000000000000009 02 40 00 01 eth0\n"
        "fd000000000000000000000000000008 02 40 00 40 eth0\n"
        "fd000000000000000000000000000007 02 40 00 80 eth0\n"
        "00000000000000000000000000000001 01 80 10 80 lo\n"
    )
    monkeypatch.setattr(network_interfaces, "_IF_INET6", table)
    assert network_interfaces._ipv6_addresses() == ["fd00::7", "fd00::9"]


# -- waiting for a name, and looking again ---------------------------------------------------------------------------


def test_a_node_waits_until_its_name_can_be_resolved_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(advertise, "SLOW_LOOKUP", 0.01)
    answers = [OSError(-3, "Temporary failure in name resolution"), None]

    def lookup(name: str) -> tuple[str, ...]:
        wait_until(lambda: bool(caplog.records), 60, "the warning")
        if (error := answers.pop(0)) is not None:
            raise error
        return ("10.0.0.1",)

    finder = Finder(TcpAddress("0.0.0.0", 1), TcpAddress("web-1", 1), (), lookup)
    with caplog.at_level(logging.WARNING, "django_clusterstate.node"):
        assert wait_for_address(finder, lambda seconds: None) == Advertised(TcpAddress("10.0.0.1", 1))
    assert caplog.text.count("cannot resolve advertised address web-1:1: the DNS server does not answer") == 1


def test_an_address_that_this_host_has_lost_is_warned_of_every_ten_minutes(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    finder = Finder(TcpAddress("0.0.0.0", 1), None)
    watch = AddressWatch(finder, Advertised(TcpAddress("192.0.2.1", 1)), lambda: now[0])
    with caplog.at_level(logging.WARNING, "django_clusterstate.node"):
        watch.check(Advertised(TcpAddress("192.0.2.1", 1)))
        assert not caplog.records
        for moment in (60.0, 120.0, 180.0, 700.0):
            now[0] = moment
            watch.check(Advertised(TcpAddress("10.0.0.5", 1)))
    assert caplog.text.count("advertised address 192.0.2.1:1 is outdated: this host's is now 10.0.0.5:1") == 2


def test_a_second_address_of_the_host_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advertise, "has_address", lambda host: host == "10.0.0.5")
    finder = Finder(TcpAddress("0.0.0.0", 1), None)
    assert finder.is_current(TcpAddress("10.0.0.5", 1), Advertised(TcpAddress("10.0.0.6", 1)))
    assert not finder.is_current(TcpAddress("10.0.0.4", 1), Advertised(TcpAddress("10.0.0.6", 1)))
    assert not finder.is_current(TcpAddress("127.0.0.1", 1), Advertised(TcpAddress("10.0.0.6", 1)))


def test_a_loopback_address_is_warned_of_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "django_clusterstate.node"):
        AddressWatch(Finder(TcpAddress("0.0.0.0", 1), None), Advertised(TcpAddress("127.0.0.1", 1), "no other"))
    assert "127.0.0.1:1 is reachable only from this host: no other; set CLUSTERSTATE_" in caplog.text


async def test_the_watch_looks_again_outside_the_loop(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(advertise, "CHECK_EVERY", 0.001)
    threads: list[int] = []
    looked = asyncio.Event()
    loop = asyncio.get_running_loop()

    def lookup(name: str) -> tuple[str, ...]:
        threads.append(threading.get_ident())
        if len(threads) == 1:
            raise OSError(-3, "Temporary failure")
        loop.call_soon_threadsafe(looked.set)
        return ("10.0.0.1",)

    finder = Finder(TcpAddress("0.0.0.0", 1), TcpAddress("web-1", 1), (), lookup)
    watching = asyncio.create_task(AddressWatch(finder, Advertised(TcpAddress("10.0.0.1", 1))).run())
    async with asyncio.timeout(60):
        await looked.wait()
    watching.cancel()
    assert threading.get_ident() not in threads


def test_some_names_mean_this_host_everywhere() -> None:
    assert all(is_local_name(name) for name in ("localhost", "LOCALHOST.", "web.localhost"))
    assert not any(is_local_name(name) for name in ("web-1", "localhost.example", "notlocalhost"))
