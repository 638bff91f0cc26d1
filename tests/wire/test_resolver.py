"""Names are resolved, and no caller waits beyond its deadline."""

import asyncio
import os
import threading
from collections.abc import Iterator

import pytest

from django_clusterstate.exceptions import Unavailable
from django_clusterstate.wire.address import TcpAddress, UnixAddress
from django_clusterstate.wire.background_threads import BackgroundWork
from django_clusterstate.wire.resolver import MAX_NAMES, REFRESH_AFTER, Resolver, look_up, numeric
from testproject.processes import wait_until
from tests.threads import at_once

WEB = TcpAddress("web.example", 4370)
SOON, LATER = 0.02, 5.0  # seconds


class Server:
    """A DNS server that holds its replies until it is released."""

    def __init__(self) -> None:
        self.answer: tuple[str, ...] | OSError = ("10.0.0.1", "10.0.0.2")
        self.asked = 0
        self.time = 0.0
        self._free = threading.Event()
        self._free.set()

    def __call__(self, name: str) -> tuple[str, ...]:
        self.asked += 1
        assert self._free.wait(LATER)
        if isinstance(self.answer, OSError):
            raise self.answer
        return self.answer

    def clock(self) -> float:
        return self.time

    def stall(self) -> None:
        self._free.clear()

    def answers_again(self) -> None:
        self._free.set()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.answers_again()


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest, server: Server) -> "Ask":
    return Ask(Resolver(server, server.clock), blocking=request.param == "sync")


class Ask:
    def __init__(self, names: Resolver, *, blocking: bool) -> None:
        self.names = names
        self.blocking = blocking

    def __call__(self, address: TcpAddress | UnixAddress, seconds: float = LATER) -> list[str]:
        if self.blocking:
            return [str(found) for found in self.names.resolve(address, seconds)]
        return [str(found) for found in asyncio.run(self.names.resolve_async(address, seconds))]

    def now(self, seconds: float = LATER) -> list[str]:
        return [str(found) for found in asyncio.run(self.names.resolve_now(WEB, seconds))]


@pytest.mark.parametrize(
    ("host", "usual"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::1", "::1"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("FD00::A", "fd00::a"),
        ("127.1", "127.0.0.1"),
    ],
)
def test_ip_address_is_never_looked_up(ask: Ask, server: Server, host: str, usual: str) -> None:
    assert ask(TcpAddress(host, 1)) == [str(TcpAddress(usual, 1))]
    assert server.asked == 0


@pytest.mark.parametrize("host", ["web", "web.example", "10.0.0", "", "a" * 300, "ä" * 100, "1:2"])
def test_host_that_is_not_an_ip_address_is_a_name(host: str) -> None:
    found = numeric(TcpAddress(host, 1))
    assert found is None or host == "10.0.0"  # an old notation of 10.0.0.0


def test_path_resolves_to_itself(ask: Ask, server: Server) -> None:
    assert ask(UnixAddress("/run/node.sock")) == ["/run/node.sock"]
    assert server.asked == 0


def test_name_resolves_to_all_its_addresses(ask: Ask) -> None:
    assert ask(WEB) == ["10.0.0.1:4370", "10.0.0.2:4370"]


def test_first_look_up_ends_at_the_deadline(ask: Ask, server: Server) -> None:
    server.stall()
    with pytest.raises(Unavailable, match=r"web\.example was not resolved in time: the DNS server does not answer"):
        ask(WEB, SOON)
    with pytest.raises(Unavailable):
        ask(WEB, 0)
    wait_until(lambda: server.asked >= 1, 60, "the look-up")
    assert server.asked == 1  # one for all
    server.answers_again()
    assert ask(WEB) == ["10.0.0.1:4370", "10.0.0.2:4370"]


def test_cached_result_is_used_while_the_server_stalls_and_refreshed_in_the_background(
    ask: Ask, server: Server
) -> None:
    ask(WEB)
    server.stall()
    server.answer = ("10.0.0.9",)
    server.time += REFRESH_AFTER + 1
    for _ in range(5):
        assert ask(WEB, 0) == ["10.0.0.1:4370", "10.0.0.2:4370"]
    wait_until(lambda: server.asked >= 2, 60, "the look-up")
    assert server.asked == 2
    running = ask.names._name(WEB.host).lookup.start()  # the one that is under way
    server.answers_again()
    running.result(LATER)
    assert ask(WEB, 0) == ["10.0.0.9:4370"]
    assert server.asked == 2


def test_cached_result_is_used_when_the_name_no_longer_exists(ask: Ask, server: Server) -> None:
    ask(WEB)
    server.answer = OSError(-2, "Name or service not known")
    server.time += REFRESH_AFTER + 1
    assert ask(WEB) == ["10.0.0.1:4370", "10.0.0.2:4370"]


def test_resolve_now_uses_no_stale_result(ask: Ask, server: Server) -> None:
    assert ask.now() == ["10.0.0.1:4370", "10.0.0.2:4370"]
    server.stall()
    assert ask.now(SOON) == ["10.0.0.1:4370", "10.0.0.2:4370"]
    server.time += REFRESH_AFTER + 1
    with pytest.raises(Unavailable, match="in time"):
        ask.now(SOON)


def test_name_that_does_not_exist_is_reported(ask: Ask, server: Server) -> None:
    server.answer = OSError(-2, "Name or service not known")
    with pytest.raises(Unavailable, match=r"the name web\.example cannot be resolved: Name or service not known"):
        ask(WEB)


def test_invalid_host_name_is_reported() -> None:
    with pytest.raises(Unavailable, match="cannot be resolved"):
        Resolver().resolve(TcpAddress("a" * 300, 1), LATER)


def test_number_of_names_is_bounded(ask: Ask) -> None:
    for number in range(MAX_NAMES):
        ask(TcpAddress(f"web-{number}", 1))
    with pytest.raises(Unavailable, match="host names"):
        ask(WEB)


def test_system_resolver_knows_localhost() -> None:
    assert {"127.0.0.1"} <= {*look_up("localhost"), "127.0.0.1"}


def test_forked_child_can_look_up_a_name_that_its_parent_was_looking_up(server: Server) -> None:
    """The child has no lookup thread, also after a fork in C, for which no hooks run."""
    work: BackgroundWork[tuple[str, ...]] = BackgroundWork(lambda: server("web"), "test")
    server.stall()
    parents = work.start()
    work._running = {os.getpid() + 1: parents}  # as after a fork
    server.answers_again()
    assert work.start() is not parents
    assert parents.result(LATER) == work.start().result(LATER)


def test_threads_that_need_a_name_at_once_share_one_look_up() -> None:
    for _ in range(200):
        free = threading.Event()
        work = BackgroundWork(free.wait, "test")
        assert len(set(at_once(work.start))) == 1
        free.set()


def test_name_can_be_looked_up_once_a_thread_can_be_started_again(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    work: BackgroundWork[tuple[str, ...]] = BackgroundWork(lambda: server("web"), "test")

    def cannot(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", cannot)
        with pytest.raises(RuntimeError):
            work.start()
    assert work.start().result(LATER)
