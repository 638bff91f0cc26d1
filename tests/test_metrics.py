"""Metrics: what they are, the two ways over HTTP to them, and that they hold nothing up."""

import asyncio
import re
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from http.client import HTTPResponse
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured
from django.test import AsyncClient, Client, override_settings
from msgspec.structs import replace
from prometheus_client import CollectorRegistry, Metric
from prometheus_client import parser as text_parser
from prometheus_client.openmetrics import parser as openmetrics_parser

from django_clusterstate import metrics, ratelimit, runtime
from django_clusterstate.client.blocking import Client as Requester
from django_clusterstate.client.dialing import Dialer
from django_clusterstate.client.routing import Routing
from django_clusterstate.core.membership.heartbeat import Identity, MemberState
from django_clusterstate.node import metrics_server
from django_clusterstate.node.config import NodeError
from django_clusterstate.settings import read_settings
from django_clusterstate.wire.address import TcpAddress, UnixAddress
from django_clusterstate.wire.framing import frame
from django_clusterstate.wire.messages import Get, Set, StatusReply, encode
from django_clusterstate.wire.status import CopiesStatus, MemberStatus, RequesterStats, Stats
from testproject.processes import ROOT, LocalCluster, Process, free_port, wait_until
from tests.conftest import using
from tests.test_docs import rows
from tests.timing import check_seconds

OPENMETRICS = "application/openmetrics-text;version=1.0.0"
TOKEN = "a long token for a machine"
VIEW = "/cluster/metrics/"
SECONDS = 60.0
UNITS = ("seconds", "bytes")
CACHES = {"default": {"BACKEND": "django_clusterstate.cache.ClusterCache"}}


def identity(name: str) -> Identity:
    return Identity(name, name.encode().ljust(16, b"-"), f"{name}:4370")


def member(name: str, state: MemberState, epoch: int, *, unreachable: bool = False) -> MemberStatus:
    return MemberStatus(identity(name), state, 0, 0.1, 5.0, epoch, unreachable)


def status(*members: MemberStatus, stats: Stats | None = None, isolated: bool = False) -> StatusReply:
    return StatusReply(
        7, identity("alpha"), MemberState.ALIVE, 60.5, isolated, "0.1.0", 2**20, members, stats or Stats()
    )


class Samples(dict[tuple[str, frozenset[tuple[str, str]]], float]):
    """The values of an exposition, by name and labels. Refuses a sample that comes twice."""

    def __init__(self, families: Iterator[Metric]) -> None:
        self.families = list(families)
        for family in self.families:
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in self, key
                self[key] = sample.value

    def of(self, name: str, **labels: str) -> float:
        return self[f"clusterstate_{name}", frozenset(labels.items())]


def read(body: str, content_type: str = "text/plain") -> Samples:
    strict = content_type.startswith("application/openmetrics-text")
    parse = openmetrics_parser if strict else text_parser
    return Samples(parse.text_string_to_metric_families(body))


def rendered(told: StatusReply | None, accept: str = "") -> Samples:
    body, content_type = metrics.render(told, accept)
    return read(body.decode(), content_type)


# -- what they are ------------------------------------------------------------------------------------------------


def names() -> dict[str, Metric]:
    suffixes = {"counter": "_total", "info": "_info"}
    return {family.name + suffixes.get(family.type, ""): family for family in metrics.families(status())}


def test_metrics_are_documented_each_with_its_type_and_labels_and_no_others_are() -> None:
    documented = {name: row for name, row in rows("docs/metrics.md").items() if name.startswith("clusterstate_")}
    assert set(documented) == set(names())
    for name, family in names().items():
        type_, labels, _ = (cell.strip() for cell in documented[name].split("|", 2))
        assert type_ == family.type
        used = {label: {s.labels[label] for s in family.samples if label in s.labels} for s in family.samples
                for label in s.labels}  # fmt: skip
        assert all(f"`{label}`" in labels for label in used)
        if set(used) & {"state", "change", "outcome", "policy", "by", "reason"}:
            (values,) = used.values()
            assert set(re.findall(r"`(\w+)`", labels.partition(":")[2])) == values


def test_metrics_in_alerts_exist() -> None:
    text = (ROOT / "docs/metrics.md").read_text()
    named = set(re.findall(r"clusterstate_\w+", text)) - {"clusterstate_"}
    assert {re.sub("_bucket$", "", name) for name in named} <= set(names())


def test_names_end_in_their_unit_and_only_counters_in_total() -> None:
    for name, family in names().items():
        assert re.fullmatch(r"clusterstate_[a-z_]+", name)
        assert family.unit == next((unit for unit in UNITS if name.endswith(f"_{unit}")), "")
        assert name.endswith("_total") == (family.type == "counter")


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
@pytest.mark.parametrize("told", [None, status()], ids=["no node", "a node"])
def test_both_formats_are_parsed_with_help_and_type_of_each_once(accept: str, told: StatusReply | None) -> None:
    body = metrics.render(told, accept)[0].decode()
    for word in ("HELP", "TYPE"):
        found = re.findall(rf"^# {word} (\S+) \S", body, re.MULTILINE)
        assert len(found) == len(set(found)) == len(list(metrics.families(told)))
    assert len(rendered(told, accept).families) == len(list(metrics.families(told)))


def test_without_a_node_there_is_only_that_it_is_not_up() -> None:
    assert dict(rendered(None)) == {("clusterstate_up", frozenset()): 0.0}


def test_members_are_counted_by_state_this_node_among_them() -> None:
    told = rendered(
        status(member("b", MemberState.ALIVE, 7), member("c", MemberState.SUSPECT, 7), member("d", MemberState.DOWN, 1))
    )
    counts = {str(state): told.of("members", state=str(state)) for state in MemberState}
    assert counts == {"joining": 0, "alive": 2, "suspect": 1, "down": 1, "leaving": 0, "left": 0}


@pytest.mark.parametrize(
    ("members", "agree"),
    [
        ((), 1),
        ((member("b", MemberState.ALIVE, 7), member("c", MemberState.SUSPECT, 7)), 1),
        ((member("b", MemberState.ALIVE, 7), member("c", MemberState.ALIVE, 8)), 0),
        ((member("b", MemberState.ALIVE, 7), member("c", MemberState.DOWN, 8), member("d", MemberState.LEFT, 9)), 1),
    ],
    ids=["alone", "agree", "one has another view", "those gone do not matter"],
)
def test_views_agree_if_all_members_announce_ours(members: tuple[MemberStatus, ...], agree: int) -> None:
    assert rendered(status(*members)).of("views_agree") == agree


def test_dry_denials_are_not_among_the_denials() -> None:
    told = rendered(status(stats=Stats(allowed=5, denied=3, dry_denied=2)))
    assert [told.of("limit_decisions_total", outcome=each) for each in ("allowed", "denied", "dry_denied")] == [5, 1, 2]


def test_owned_entries_and_copies_are_told_apart() -> None:
    told = rendered(status(stats=Stats(
        cache_entries=9, cache_owned=5, cache_evictions=1, cache_copies_evicted=2,
        limit_entries=8, limit_owned=4, limit_evictions=3, limit_copies_evicted=6,
    )))  # fmt: skip
    kinds = ("entries", "entries_owned", "evictions_total", "copies_evicted_total")
    assert [told.of(f"cache_{kind}") for kind in kinds] == [9, 5, 1, 2]
    assert [told.of(f"limit_{kind}") for kind in kinds] == [8, 4, 3, 6]


def test_what_is_missing_of_copies_is_told() -> None:
    copies = CopiesStatus(missing=1, lag=2, behind=3, forwarded=4, unfilled=5, lag_seconds=0.6, backups=0)
    told = rendered(replace(status(), copies=copies))
    assert (told.of("synced"), told.of("slots_missing"), told.of("slots_unfilled"), told.of("backups")) == (0, 1, 5, 0)
    assert (told.of("replication_lag_changes"), told.of("replication_lag_seconds")) == (2, 0.6)
    assert (told.of("replication_behind_total"), told.of("requests_forwarded_total")) == (3, 4)
    assert rendered(replace(status(), copies=CopiesStatus(True))).of("synced") == 1


def test_histogram_is_cumulative() -> None:
    tally = RequesterStats()
    tally.add_latencies([0.00002, 0.00003, 0.00004, 0.2, 3.0])
    told = rendered(status(stats=Stats(tally=tally)), OPENMETRICS)
    name = "request_duration_seconds"
    buckets = [told.of(f"{name}_bucket", le=le) for le in ("2.5e-05", "5e-05", "0.0001", "0.1", "0.25", "1.0", "+Inf")]
    assert buckets == [1, 3, 3, 3, 4, 4, 5]
    assert told.of(f"{name}_count") == 5
    assert told.of(f"{name}_sum") == pytest.approx(3.20009)


def test_collector_asks_at_each_scrape_and_not_when_it_is_registered() -> None:
    asked: list[bool] = []

    def ask() -> StatusReply:
        asked.append(True)
        return status()

    registry = CollectorRegistry(auto_describe=True)
    registry.register(metrics.ClusterCollector(ask))
    assert not asked
    for times in (1, 2):
        assert registry.get_sample_value("clusterstate_up") == 1
        assert len(asked) == times


# -- by the site --------------------------------------------------------------------------------------------------


@pytest.fixture(params=["wsgi", "asgi"])
def get(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Asks the site for a page, as `user` if one is given."""

    def ask(path: str, user: User | None = None, **headers: str) -> Any:
        client = Client()
        if user is not None:
            client.force_login(user)
        return client.get(path, headers=headers)

    def aask(path: str, user: User | None = None, **headers: str) -> Any:
        async def answer() -> Any:
            client = AsyncClient()
            if user is not None:
                await client.aforce_login(user)
            return await client.get(path, headers=headers)

        return asyncio.run(answer())

    return ask if request.param == "wsgi" else aask


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CLUSTERSTATE_METRICS_TOKEN", TOKEN)
    runtime.forget()
    yield
    runtime.forget()


@pytest.mark.usefixtures("cluster", "token")
@pytest.mark.django_db(transaction=True)
class TestView:
    def test_token_opens_it(self, get: Callable[..., Any]) -> None:
        for scheme in ("Bearer", "bearer"):
            response = get(VIEW, Authorization=f"{scheme} {TOKEN}")
            assert response.status_code == 200
            assert response["Content-Type"].startswith("text/plain; version=0.0.4")
            told = read(response.content.decode())
            assert told.of("up") == 1
            assert told.of("members", state="alive") == 3
            assert told.of("node_info", node="alpha", version="0.1.0") == 1

    def test_scraper_of_openmetrics_gets_that(self, get: Callable[..., Any]) -> None:
        def told() -> Samples:
            response = get(VIEW, Authorization=f"Bearer {TOKEN}", Accept=OPENMETRICS)
            assert response["Content-Type"].startswith("application/openmetrics-text")
            return read(response.content.decode(), response["Content-Type"])

        wait_until(lambda: told().of("views_agree") == 1, SECONDS, "heartbeats with one view")

    @pytest.mark.parametrize(
        "sent", ["", "Bearer", "Bearer ", "Bearer wrong", f"Basic {TOKEN}", "Bearer \u00fc", TOKEN]
    )
    def test_others_are_asked_who_they_are(self, get: Callable[..., Any], sent: str) -> None:
        response = get(VIEW, **({"Authorization": sent} if sent else {}))
        assert response.status_code == 401
        assert response["WWW-Authenticate"].startswith("Bearer")
        assert b"clusterstate" not in response.content

    def test_staff_need_the_permission_of_the_admin(self, get: Callable[..., Any]) -> None:
        someone = User.objects.create_user("someone")
        staff = User.objects.create_user("staff", is_staff=True)
        permission = Permission.objects.get(codename="view_cluster")
        someone.user_permissions.add(permission)
        assert get(VIEW, someone).status_code == 403
        assert get(VIEW, staff).status_code == 403
        staff.user_permissions.add(permission)
        assert get(VIEW, staff).status_code == 200

    def test_it_is_only_read(self) -> None:
        assert Client().post(VIEW).status_code == 405


@pytest.mark.usefixtures("no_node", "token")
def test_node_that_does_not_answer_is_no_failed_scrape(get: Callable[..., Any]) -> None:
    response = get(VIEW, Authorization=f"Bearer {TOKEN}")
    assert response.status_code == 200
    assert dict(read(response.content.decode())) == {("clusterstate_up", frozenset()): 0.0}


@pytest.mark.usefixtures("no_node")
@pytest.mark.django_db(transaction=True)
def test_without_a_token_in_the_settings_none_opens_it(get: Callable[..., Any]) -> None:
    for sent in ("Bearer", "Bearer None", "Bearer "):
        assert get(VIEW, Authorization=sent).status_code == 401


@pytest.mark.usefixtures("token")
def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "django_clusterstate.metrics", None)
    response = Client(headers={"Authorization": f"Bearer {TOKEN}"}).get(VIEW)
    assert response.status_code == 501
    assert b"django-clusterstate[prometheus]" in response.content


def test_token_is_in_no_repr_and_no_error() -> None:
    assert TOKEN not in repr(read_settings({"METRICS_TOKEN": TOKEN}, {}))
    with pytest.raises(ImproperlyConfigured, match="METRICS_TOKEN") as caught:
        read_settings({"METRICS_TOKEN": [TOKEN]}, {})
    assert TOKEN not in str(caught.value)


# -- by the node --------------------------------------------------------------------------------------------------


def fetch(port: int, path: str = "/metrics", accept: str = "") -> HTTPResponse:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Accept": accept} if accept else {})
    response: HTTPResponse = urllib.request.urlopen(request, timeout=SECONDS)
    return response


def scrape(port: int, accept: str = "") -> Samples:
    with fetch(port, accept=accept) as response:
        return read(response.read().decode(), response.headers["Content-Type"])


class Scraped(LocalCluster):
    """Nodes that serve metrics, each at a port of its own."""

    def __init__(self, folder: Path, *names: str) -> None:
        super().__init__(folder, names)
        self.metrics = {name: free_port() for name in names}

    def start(self, *names: str) -> None:
        for name in names or self.names:
            command = [sys.executable, "manage.py", "clusternode", "--metrics-port", str(self.metrics[name])]
            self.processes[name] = Process(command, self.folder / f"{name}.log", self.env(name))


@pytest.fixture
def scraped(folder: Path) -> Iterator[Scraped]:
    cluster = Scraped(folder, "a", "b")
    with cluster:
        cluster.start()
        cluster.wait_for()
        yield cluster


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_real_nodes_count_what_is_done(scraped: Scraped, accept: str) -> None:
    def total(name: str, **labels: str) -> float:
        return sum(scrape(port, accept).of(name, **labels) for port in scraped.metrics.values())

    with (
        using(scraped, "a"),
        override_settings(CACHES=CACHES),
    ):
        cache = caches["default"]
        limit = ratelimit.Limit.parse("3/h")
        for number in range(20):
            cache.set(f"key-{number}", "value")
            cache.get(f"key-{number}")
            cache.get(f"nothing-{number}")
        for _ in range(5):
            ratelimit.hit(limit, "test", "someone")

        def denials() -> float:
            return total("limit_decisions_total", outcome="denied") + total("limit_denials_remembered_total")

        wait_until(lambda: _asks_again(cache) and denials() >= 2, SECONDS, "the tally")
    assert total("request_duration_seconds_count") > 60
    assert total("cache_lookups_total", outcome="hit") == 20
    assert total("cache_lookups_total", outcome="miss") >= 20
    assert total("limit_decisions_total", outcome="allowed") == 3
    assert denials() == 2
    assert total("requests_total") >= 63
    wait_until(lambda: total("cache_entries") == 40, SECONDS, "each entry is at its owner and its backup")
    assert total("cache_entries_owned") == 20
    assert total("request_duration_seconds_sum") < 60 * 5
    for port in scraped.metrics.values():
        told = scrape(port, accept)
        assert told.of("member_changes_total", change="joined") == 2
        assert told.of("cache_bytes") <= told.of("cache_max_bytes") == 256 * 2**20
        assert told.of("heartbeats_total", outcome="heard") > 0


def _asks_again(cache: Any) -> bool:
    """A requester tells its tally when it asks for the view, before an operation."""
    cache.get("anything")
    return True


def test_a_killed_member_shows_in_the_metrics_of_the_others(scraped: Scraped) -> None:
    scraped.kill("b")
    port = scraped.metrics["a"]
    wait_until(lambda: scrape(port).of("members", state="down") == 1, SECONDS, "b down")
    assert scrape(port).of("member_changes_total", change="down") == 1
    wait_until(lambda: scrape(port).of("views_agree") == 1, SECONDS, "those that are left agree")


def test_node_answers_at_its_path_to_get_and_head_only(scraped: Scraped) -> None:
    port = scraped.metrics["a"]
    for path, method, code in (("/", "GET", 404), ("/metrics", "POST", 405)):
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=SECONDS)
        assert caught.value.code == code
        caught.value.close()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics?x=1", method="HEAD")
    with urllib.request.urlopen(request, timeout=SECONDS) as response:
        assert response.read() == b""
        assert int(response.headers["Content-Length"]) > 1000


@pytest.mark.timing
def test_silent_and_endless_scrapers_hold_nobody_up_for_long(scraped: Scraped) -> None:
    port = scraped.metrics["a"]
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(metrics_server.MAX_CONNECTIONS)]
    try:
        start = time.monotonic()
        assert _scrapable(port)
        check_seconds(time.monotonic() - start, below=metrics_server.TIMEOUT / 2)
        for sock in silent:
            sock.settimeout(metrics_server.TIMEOUT + SECONDS)
            assert _closed(sock)
    finally:
        for sock in silent:
            sock.close()
    with closing(socket.create_connection(("127.0.0.1", port), SECONDS)) as endless:
        try:
            endless.sendall(b"GET /metrics HTTP/1.1\r\n" + b"x: y\r\n" * metrics_server.MAX_HEAD)
        except OSError:
            return
        assert _closed(endless)


def _closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def _scrapable(port: int) -> bool:
    try:
        return scrape(port).of("up") == 1
    except OSError:
        return False


@pytest.mark.timing(alone=True)
def test_scrapers_do_not_hold_up_requests(scraped: Scraped) -> None:
    """Sixteen scrapers without a pause: what requesters wait for stays far below the sum of the answers."""
    port, asked = scraped.metrics["a"], 0
    requester = Requester(Routing(UnixAddress(str(scraped.socket("a")))), Dialer((), 1.0))
    target = requester.routing.local
    requester.call_node(target, frame(encode(Set([(b"x\0key", b"value")], None))))
    answers = [_seconds_of_scrape(port) for _ in range(50)]
    request = frame(encode(Get([b"x\0key"])))
    script = f"""if True:
        import socket, threading, time
        until = time.monotonic() + 3
        def run():
            while time.monotonic() < until:
                with socket.create_connection(("127.0.0.1", {port})) as sock:
                    sock.sendall(b"GET /metrics HTTP/1.1\\r\\n\\r\\n")
                    while sock.recv(65536): pass
        threads = [threading.Thread(target=run) for _ in range({metrics_server.MAX_CONNECTIONS})]
        [t.start() for t in threads]; [t.join() for t in threads]
    """
    flood = subprocess.Popen([sys.executable, "-c", script])
    waits = []
    while flood.poll() is None:
        start = time.perf_counter()
        requester.call_node(target, request)
        waits.append(time.perf_counter() - start)
        asked += 1
    requester.close()
    assert flood.returncode == 0
    assert asked > 1000
    waits.sort()
    check_seconds(waits[int(len(waits) * 0.99)], below=statistics.median(answers) * metrics_server.MAX_CONNECTIONS / 4)


def _seconds_of_scrape(port: int) -> float:
    start = time.perf_counter()
    assert _scrapable(port)
    return time.perf_counter() - start


def test_port_that_is_taken_is_named(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, LocalCluster(folder, ("a",)) as cluster:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "manage.py", "clusternode", "--metrics-port"]
        for value, words in ((port, "metrics cannot be served at 127.0.0.1"), ("99999", "is not an address")):
            process = Process([*command, value], folder / f"{value}.log", cluster.env("a"))
            try:
                assert process.wait(SECONDS) == 1
                assert words in process.output()
            finally:
                process.stop()


async def test_answers_are_made_one_at_a_time_with_room_between() -> None:
    made: list[float] = []
    loop = asyncio.get_running_loop()

    def render(accept: str) -> tuple[bytes, str]:
        made.append(loop.time())
        return accept.encode(), "text/plain"

    async def ask(number: int) -> bytes:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\naccept: %d\r\n\r\n" % number)
        whole = await reader.read()
        writer.close()
        return whole.rpartition(b"\r\n\r\n")[2]

    async with metrics_server.serve_metrics(TcpAddress("127.0.0.1", 0), render) as address:
        assert await asyncio.gather(*map(ask, range(4))) == [b"0", b"1", b"2", b"3"]
    gaps = [later - sooner for sooner, later in pairwise(made)]
    assert min(gaps) > metrics_server.SPACING * 0.7


async def test_scrapers_that_hang_up_take_no_turn_from_others() -> None:
    rendered = 0

    def render(accept: str) -> tuple[bytes, str]:
        nonlocal rendered
        rendered += 1
        return b"metrics", "text/plain"

    async with metrics_server.serve_metrics(TcpAddress("127.0.0.1", 0), render) as address:
        for hangs_up in (True, False):  # by a reset, and by a FIN, which alone says that no more is sent
            for _ in range(100):
                batch = [await asyncio.open_connection(*address) for _ in range(metrics_server.MAX_CONNECTIONS // 2)]
                for _, writer in batch:
                    writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
                    if hangs_up:
                        writer.transport.abort()
                    else:
                        writer.close()
            before = rendered
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
            async with asyncio.timeout(SECONDS):
                assert (await reader.read()).endswith(b"metrics")
            writer.close()
            assert rendered - before <= 4
    assert rendered < 100


async def test_silent_connections_give_way_to_scrapers() -> None:
    async with metrics_server.serve_metrics(
        TcpAddress("127.0.0.1", 0), lambda accept: (b"metrics", "text/plain")
    ) as address:
        silent = [await asyncio.open_connection(*address) for _ in range(metrics_server.MAX_CONNECTIONS)]
        silent[0][1].write(b"GET /metrics HTTP/1.1\r\n")  # it has begun, and is no better
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
        async with asyncio.timeout(SECONDS):
            assert (await reader.read()).endswith(b"metrics")
            assert await silent[0][0].read() == b""  # the one that has been silent for longest
        assert not silent[1][0].at_eof()
        for _, other in silent:
            other.close()
        writer.close()


async def test_scraper_that_sends_on_while_it_waits_is_closed() -> None:
    async with metrics_server.serve_metrics(
        TcpAddress("127.0.0.1", 0), lambda accept: (b"metrics", "text/plain")
    ) as address:
        pairs = [await asyncio.open_connection(*address) for _ in range(4)]
        for _, writer in pairs:
            writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
        reader, writer = pairs[-1]
        writer.write(bytes(2 * metrics_server.MAX_HEAD))
        async with asyncio.timeout(SECONDS):
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
            for reader, _ in pairs[:-1]:
                assert (await reader.read()).endswith(b"metrics")
        for _, writer in pairs:
            writer.close()


async def test_address_of_another_host_is_refused() -> None:
    with pytest.raises(NodeError, match="--metrics-address"):
        async with metrics_server.serve_metrics(TcpAddress("192.0.2.1", free_port()), lambda accept: (b"", "")):
            pass
