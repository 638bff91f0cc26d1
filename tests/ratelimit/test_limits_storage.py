"""Limits on Redis, Redis Cluster, Valkey and Memcached: real servers on the loopback interface, killed and stopped."""

import asyncio
import logging
import math
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock
from uuid import uuid4

import pytest
import redis
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory, override_settings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from django_clusterstate import ratelimit, runtime
from django_clusterstate.checks import check_settings
from django_clusterstate.client.circuit_breaker import FAILURES_TO_OPEN, HALF_OPEN_AFTER
from django_clusterstate.core.limits import algorithms
from django_clusterstate.core.limits.algorithms import Algorithm, Rule
from django_clusterstate.decorators import cluster_ratelimit
from django_clusterstate.limits_storage import LimitsStorage, engines, operations, scripts
from django_clusterstate.limits_storage.engines import MAX_AT_ONCE, Engine
from django_clusterstate.ratelimit import ALGORITHMS, MAX_COST, Decision, Limit, routing_key
from testproject.processes import Process, free_port, wait_until
from tests.faults.proxy import Proxy
from tests.forks import InChild
from tests.layers import Redis
from tests.ratelimit.conftest import LimitFunctions
from tests.timelimits import SoftTimeLimit, handling, raises
from tests.timing import check_seconds

SECONDS = 60.0
DEADLINE = 10.0  # a machine that runs tests may hold up a process for longer than the default of 0.1 s
CLUSTERS = ("redis+cluster", "valkey+cluster")
SCHEMES = ("redis", "valkey", *CLUSTERS, "memcached")

pytestmark = pytest.mark.skipif(
    not (shutil.which("redis-server") and shutil.which("memcached")),
    reason="needs redis-server and memcached (Debian: apt-get install redis-server memcached)",
)

# redis-py (8.1) leaves a connection unclosed that was refused or not answered in time.
UNCLOSED_BY_REDIS_PY = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def start_memcached(folder: Path, port: int) -> Process:
    user = ["-u", "root"] if os.geteuid() == 0 else []
    command = ["memcached", *user, "-l", "127.0.0.1", "-p", str(port)]
    return Process(command, folder / "memcached.log", os.environ)


def start_cluster(folder: Path, port: int) -> Process:
    """A Redis cluster of one node, which has all slots."""
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    command += ["--cluster-enabled", "yes", "--cluster-port", str(free_port())]
    process = Process(command, folder / "cluster.log", os.environ)
    wait_until(lambda: accepts(port), SECONDS, "a cluster's node")
    with redis.Redis(port=port) as client:
        client.execute_command("CLUSTER ADDSLOTSRANGE 0 16383")
        wait_until(lambda: client.cluster("info")["cluster_state"] == "ok", SECONDS, "a cluster")
    return process


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, str]]:
    """A URI for each scheme. Not to be harmed."""
    with tempfile.TemporaryDirectory(prefix="cs-") as name:
        folder = Path(name)
        standalone, cluster, memcached = Redis(folder), free_port(), free_port()
        processes = [standalone.process, start_memcached(folder, memcached), start_cluster(folder, cluster)]
        try:
            for port in (int(standalone.address.rpartition(":")[2]), memcached):
                wait_until(lambda port=port: accepts(port), SECONDS, "a server")  # type: ignore[misc]
            yield {
                "redis": f"redis://{standalone.address}/0",
                "valkey": f"valkey://{standalone.address}/1",
                **{scheme: f"{scheme}://127.0.0.1:{cluster}" for scheme in CLUSTERS},
                "memcached": f"memcached://127.0.0.1:{memcached}",
            }
        finally:
            for process in processes:
                process.kill()


@pytest.fixture
def use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Makes this process count at a URI. There is no node."""
    monkeypatch.setenv("CLUSTERSTATE_SOCKET", str(tmp_path / "nowhere.sock"))

    def function(uri: str, deadline: float = DEADLINE) -> None:
        monkeypatch.setenv("CLUSTERSTATE_LIMITS_STORAGE", uri)
        monkeypatch.setenv("CLUSTERSTATE_DEADLINE", str(deadline))
        runtime.forget()

    yield function
    monkeypatch.undo()
    runtime.forget()


@pytest.fixture(params=SCHEMES)
def scheme(request: pytest.FixtureRequest, servers: dict[str, str], use: Callable[..., None]) -> str:
    """Each engine, used by this process."""
    use(servers[request.param])
    return str(request.param)


@pytest.fixture
def on_redis(servers: dict[str, str], use: Callable[..., None]) -> str:
    use(servers["redis"])
    return servers["redis"]


@pytest.fixture
def redis_of_its_own(folder: Path) -> Iterator[Redis]:
    """One that may be killed."""
    server = Redis(folder)
    wait_for(server)
    yield server
    server.process.signal(signal.SIGCONT)
    server.process.kill()


def wait_for(server: Redis) -> None:
    wait_until(lambda: accepts(int(server.address.rpartition(":")[2])), SECONDS, "redis-server")


# -- the same for every engine ------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_limit_allows_its_number_of_hits(scheme: str, functions: LimitFunctions, group: str, algorithm: str) -> None:
    limit = Limit.parse("3/10d", algorithm)
    decisions = [functions.hit(limit, group, "key") for _ in range(5)]
    assert [decision.allowed for decision in decisions] == [True] * 3 + [False] * 2
    assert [decision.remaining for decision in decisions] == [2, 1, 0, 0, 0]
    assert {(decision.limit, decision.period) for decision in decisions} == {(3, 864000.0)}
    assert {(decision.owner, decision.fallback) for decision in decisions} == {(scheme, "")}
    assert all(decision.retry_after == 0 for decision in decisions[:3])
    assert all(0 < decision.retry_after <= 2 * 864000 for decision in decisions[3:])
    assert all(0 < decision.reset_after <= 2 * 864000 for decision in decisions)
    assert functions.hit(limit, group, "other key").allowed
    assert functions.hit(limit, group + "other", "key").allowed


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_peek_returns_the_decision_of_a_hit_without_counting(
    scheme: str, functions: LimitFunctions, group: str, algorithm: str
) -> None:
    limit = Limit.parse(["2/h", "5/d"], algorithm)
    looks = [(functions.peek(limit, group, "key"), functions.hit(limit, group, "key")) for _ in range(4)]
    assert [(look.allowed, look.remaining) for look, _ in looks] == [(True, 2), (True, 1), (False, 0), (False, 0)]
    assert [hit.allowed for _, hit in looks] == [True, True, False, False]
    assert not functions.peek(limit, group, "key", 3).allowed
    assert functions.peek(limit, group, "other key", 2).remaining == 2
    assert functions.peek(limit, group, "other key", 2).reset_after == 0
    assert functions.hit(Limit.parse("5/d", algorithm), group, "key", 0).remaining == 3


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_hit_may_cost_more_than_one_and_a_denied_one_costs_nothing(
    scheme: str, functions: LimitFunctions, group: str, algorithm: str
) -> None:
    limit = Limit.parse("10/d", algorithm)
    assert functions.hit(limit, group, "key", 7).remaining == 3
    denied = [functions.hit(limit, group, "key", 4) for _ in range(3)]
    assert {(decision.allowed, decision.remaining) for decision in denied} == {(False, 3)}
    assert functions.hit(limit, group, "key", 3).remaining == 0
    assert not functions.hit(limit, group, "fresh", 11).allowed
    assert functions.hit(limit, group, "fresh", 0).remaining == 10


def test_a_limit_of_zero_blocks_all(scheme: str, functions: LimitFunctions, group: str) -> None:
    decision = functions.hit(Limit.parse("0/s"), group, "key")
    assert (decision.allowed, decision.remaining, decision.retry_after) == (False, 0, 1.0)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_reset_forgets_the_hits_of_a_key(scheme: str, functions: LimitFunctions, group: str, algorithm: str) -> None:
    limit, other = Limit.parse("1/d", algorithm), Limit.parse("2/d", algorithm)
    assert [functions.hit(limit, group, "key").allowed for _ in range(2)] == [True, False]
    functions.hit(other, group, "key")
    assert functions.reset(limit, group, "misspelled") is False
    assert functions.reset(Limit.parse("1/h", algorithm), group, "key") is False
    assert functions.reset(limit, group, "key") is True
    assert functions.reset(limit, group, "key") is False
    assert functions.hit(limit, group, "key").allowed
    assert functions.peek(other, group, "key").remaining == 1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_refund_takes_back_no_more_than_was_counted(
    scheme: str, functions: LimitFunctions, group: str, algorithm: str
) -> None:
    limit = Limit.parse(["3/h", "5/d"], algorithm)
    decisions = [functions.hit(limit, group, "key") for _ in range(6)]
    assert not functions.refund(decisions[5], limit, group, "key")
    assert functions.peek(limit, group, "key").remaining == 0
    assert functions.refund(decisions[0], limit, group, "key")
    assert functions.peek(limit, group, "key").remaining == 1
    assert [functions.hit(limit, group, "key").allowed for _ in range(2)] == [True, False]
    functions.refund(decisions[0], limit, group, "key", 20)
    assert functions.peek(limit, group, "key").remaining == 3
    assert functions.peek(Limit.parse("5/d", algorithm), group, "key").remaining == 5
    functions.refund(decisions[0], limit, group, "never hit", 2)
    assert functions.peek(limit, group, "never hit").remaining == 3


def test_blocking_and_asyncio_functions_count_in_the_same_place(scheme: str, group: str) -> None:
    for algorithm in ALGORITHMS:
        limit = Limit.parse("2/d", algorithm)
        assert ratelimit.hit(limit, group, "key").remaining == 1
        assert asyncio.run(ratelimit.ahit(limit, group, "key")).remaining == 0
        assert not ratelimit.hit(limit, group, "key").allowed


@pytest.mark.parametrize("key", ["", "\0 \n{}", "\ud800", "ø" * 5000, "k" * 100_000])
def test_any_text_is_a_key(scheme: str, functions: LimitFunctions, group: str, key: str) -> None:
    limit = Limit.parse("1/d")
    assert functions.hit(limit, group, key).allowed
    assert not functions.hit(limit, group, key).allowed
    assert functions.hit(limit, group, key + "x").allowed


@pytest.mark.parametrize("algorithm", ["fixed_window", "sliding_window"])
@pytest.mark.parametrize("kind", ["redis", "memcached"])
def test_a_hit_passes_again_when_its_window_is_over(
    servers: dict[str, str], use: Callable[..., None], group: str, kind: str, algorithm: str
) -> None:
    use(servers[kind])
    limit = Limit.parse("1/s", algorithm)
    assert ratelimit.hit(limit, group, "key").allowed
    wait_until(lambda: ratelimit.hit(limit, group, "key").allowed, SECONDS, "allowed again")


# -- one key, many at once ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("on_redis")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_exactly_the_limit_passes_of_many_threads(group: str, algorithm: str) -> None:
    limit = Limit.parse("100/d", algorithm)
    with ThreadPoolExecutor(32) as threads:
        decisions = list(threads.map(lambda _: ratelimit.hit(limit, group, "key"), range(400)))
    assert {decision.fallback for decision in decisions} == {""}
    assert sum(decision.allowed for decision in decisions) == 100
    storage = runtime.get_limits_storage()
    assert storage is not None
    storage.run(operations.refund, routing_key(group, "key"), limit.rules, 1)
    assert ratelimit.peek(limit, group, "key").remaining == 1


@pytest.mark.usefixtures("on_redis")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_exactly_the_limit_passes_of_many_tasks(group: str, algorithm: str) -> None:
    limit = Limit.parse("100/d", algorithm)
    decisions = await asyncio.gather(*(ratelimit.ahit(limit, group, "key") for _ in range(400)))
    assert {decision.fallback for decision in decisions} == {""}
    assert sum(decision.allowed for decision in decisions) == 100


def test_no_more_than_the_limit_passes_of_many_threads_on_memcached(
    servers: dict[str, str], use: Callable[..., None], group: str
) -> None:
    use(servers["memcached"])
    limit = Limit.parse("100/d")
    with ThreadPoolExecutor(32) as threads:
        decisions = list(threads.map(lambda _: ratelimit.hit(limit, group, "key"), range(400)))
    assert sum(decision.allowed for decision in decisions) == 100


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_hit_that_others_were_faster_than_is_denied_and_leaves_no_trace(
    on_redis: str, group: str, algorithm: str
) -> None:
    limit, key = Limit.parse(["5/h", "2/d"], algorithm), routing_key(group, "key")
    storage = LimitsStorage(on_redis, "default", DEADLINE)
    storage.run(operations.peek, key, limit.rules, 1)  # connects
    others: list[bool] = []
    taken = 0
    operation, result = operations.hit(storage._counters(key, limit.rules), 1), None
    try:
        while True:
            command = operation.send(result)
            taken += 1
            if taken == len(limit.rules) + 1:  # each was looked at, and the first is about to be counted
                others = [ratelimit.hit(limit, group, "key").allowed for _ in range(3)]
            result = command.run(storage._client)
    except StopIteration as done:
        decisions = done.value
    storage.close()
    assert others == [True, True, False]
    assert [decision.allowed for decision in decisions] == [True, False]
    assert ratelimit.peek(Limit.parse("5/h", algorithm), group, "key").remaining == 3
    assert ratelimit.peek(Limit.parse("2/d", algorithm), group, "key").remaining == 0


# -- when it fails ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "allowed", "fallback"),
    [("local", [True, False], "process"), ("allow", [True, True], "allow"), ("deny", [False, False], "deny")],
)
def test_a_storage_that_dies_is_replaced_by_the_policy_until_it_is_back(
    redis_of_its_own: Redis, use: Callable[..., None], functions: LimitFunctions, group: str, policy: str,
    allowed: list[bool], fallback: str, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    use(f"redis://{redis_of_its_own.address}")
    caplog.set_level(logging.INFO)
    limit = Limit.parse("1/d", "fixed_window", policy)
    assert [functions.hit(limit, group, "key").allowed for _ in range(2)] == [True, False]
    redis_of_its_own.process.kill()
    decisions = [functions.hit(limit, group, "key", fresh=True) for _ in range(20)]
    assert [decision.allowed for decision in decisions[:2]] == allowed
    assert {decision.fallback for decision in decisions} == {fallback}
    assert {decision.owner for decision in decisions} == {""}
    assert functions.reset(limit, group, "key") is None
    redis_of_its_own.start()
    wait_for(redis_of_its_own)
    wait_until(lambda: functions.hit(limit, group, "key", fresh=True).fallback == "", SECONDS, "counted there again")
    assert not functions.hit(limit, group, "key").allowed
    place = f"limits storage redis://{redis_of_its_own.address}"
    assert caplog.messages == [
        f"circuit breaker for {place} opened after 3 failures in a row (ConnectionError); "
        "requests to it fail at once and one is tried every 0.5 s",
        f"circuit breaker for {place} closed: it is responding again",
    ]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_hits_never_raise_while_the_storage_is_killed(
    redis_of_its_own: Redis, use: Callable[..., None], group: str, asynchronous: bool
) -> None:
    use(f"redis://{redis_of_its_own.address}")
    limit, decisions, ended = Limit.parse("1000000/d"), list[Decision](), [False]

    async def hit_on() -> None:
        async def one() -> None:
            while not ended[0]:
                decisions.append(await ratelimit.ahit(limit, group, "key"))
                await asyncio.sleep(0)

        await asyncio.gather(*(one() for _ in range(8)))

    def hit_on_in_a_thread() -> None:
        while not ended[0]:
            decisions.append(ratelimit.hit(limit, group, "key"))

    with ThreadPoolExecutor(8) as threads:
        if asynchronous:
            under_way = [threads.submit(asyncio.run, hit_on())]
        else:
            under_way = [threads.submit(hit_on_in_a_thread) for _ in range(8)]
        try:
            wait_until(lambda: len(decisions) > 100, SECONDS, "hits")
            redis_of_its_own.process.kill()
            wait_until(lambda: decisions[-1].fallback == "process", SECONDS, "hits counted here")
            redis_of_its_own.start()
            wait_until(lambda: decisions[-1].fallback == "", SECONDS, "hits counted there")
        finally:
            ended[0] = True
        for future in under_way:
            future.result(SECONDS)
    assert all(decision.allowed for decision in decisions)


@pytest.mark.timing
def test_a_storage_that_hangs_costs_a_deadline_and_then_hardly_anything(
    redis_of_its_own: Redis, use: Callable[..., None], functions: LimitFunctions, group: str
) -> None:
    use(f"redis://{redis_of_its_own.address}", deadline=0.2)
    limit = Limit.parse("1000/d")
    wait_until(lambda: functions.hit(limit, group, "key", fresh=True).fallback == "", SECONDS, "a first hit")
    redis_of_its_own.process.signal(signal.SIGSTOP)
    slow = []
    for _ in range(FAILURES_TO_OPEN):
        start = time.monotonic()
        assert functions.hit(limit, group, "key").fallback == "process"
        slow.append(time.monotonic() - start)
    assert min(slow) > 0.15
    # The half second counts from the beginning of the last failure.
    start = time.monotonic()
    for _ in range(100):
        assert functions.hit(limit, group, "key").fallback == "process"
    check_seconds(time.monotonic() - start, below=HALF_OPEN_AFTER)
    redis_of_its_own.process.signal(signal.SIGCONT)
    wait_until(lambda: functions.hit(limit, group, "key", fresh=True).fallback == "", SECONDS, "counted there again")


def test_a_time_limit_that_ends_while_a_storage_hangs_is_raised_and_no_failure_of_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as hanging, handling(raises):
        storage = LimitsStorage(f"redis://127.0.0.1:{hanging.getsockname()[1]}/0", "default", 5.0)

        def hit() -> None:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            storage.run(operations.hit, b"key", Limit.parse("5/m").rules, 1)

        for _ in range(FAILURES_TO_OPEN + 1):
            with pytest.raises(SoftTimeLimit):
                hit()
        assert storage._engine.failures == 0
        storage.close()


@pytest.mark.parametrize("kind", ["redis", "valkey"])
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.timing
@UNCLOSED_BY_REDIS_PY
def test_many_wait_together_for_a_storage_that_hangs(
    redis_of_its_own: Redis, use: Callable[..., None], group: str, kind: str, asynchronous: bool
) -> None:
    use(f"{kind}://{redis_of_its_own.address}", deadline=0.5)
    limit = Limit.parse("1000/d")

    async def hit_at_once() -> list[Decision]:
        return await asyncio.gather(*(ratelimit.ahit(limit, group, "key") for _ in range(10 * MAX_AT_ONCE)))

    redis_of_its_own.process.signal(signal.SIGSTOP)
    start = time.monotonic()
    if asynchronous:
        decisions = asyncio.run(hit_at_once())
    else:
        with ThreadPoolExecutor(32) as threads:
            decisions = list(threads.map(lambda _: ratelimit.hit(limit, group, "key"), range(320)))
    check_seconds(time.monotonic() - start, below=2.0, at_least=0.4)
    assert {decision.fallback for decision in decisions} == {"process"}


@pytest.mark.parametrize("kind", ["memcached", *CLUSTERS])
def test_other_engines_are_replaced_and_found_again_as_well(
    folder: Path, use: Callable[..., None], functions: LimitFunctions, group: str, kind: str
) -> None:
    port, limit = free_port(), Limit.parse("1000/d")
    start = start_memcached if kind == "memcached" else start_cluster
    use(f"{kind}://127.0.0.1:{port}")
    assert {functions.hit(limit, group, "key").fallback for _ in range(5)} == {"process"}
    for _ in range(2):
        process = start(folder, port)
        try:
            wait_until(lambda: functions.hit(limit, group, "key", fresh=True).fallback == "", SECONDS, "counted there")
            process.kill()
            assert {functions.hit(limit, group, "key").fallback for _ in range(5)} == {"process"}
        finally:
            process.kill()
        shutil.rmtree(folder)
        folder.mkdir()


@UNCLOSED_BY_REDIS_PY
def test_password_is_used_and_never_logged(
    servers: dict[str, str],
    use: Callable[..., None],
    functions: LimitFunctions,
    group: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    secret = "s3cret%20word"
    with redis.Redis.from_url(servers["redis"]) as client:
        client.acl_setuser("guest", enabled=True, passwords=["+s3cret word"], keys=["*"], commands=["+@all"])
    address = servers["redis"].removeprefix("redis://")
    use(f"redis://guest:{secret}@{address}")
    decision = functions.hit(Limit.parse("1/d"), group, "key")
    assert (decision.owner, decision.fallback) == ("redis", "")
    use(f"redis://guest:{secret}x@{address}")
    assert {functions.hit(Limit.parse("1/d"), group, "key").fallback for _ in range(5)} == {"process"}
    assert "AuthenticationError" in caplog.text
    assert "s3cret" not in caplog.text + repr(runtime.get_settings())


# -- processes, threads and loops -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["redis", "memcached"])
def test_a_child_makes_connections_of_its_own(
    servers: dict[str, str], use: Callable[..., None], group: str, kind: str, in_child: InChild
) -> None:
    use(servers[kind])
    limit = Limit.parse("100000/d")
    ratelimit.hit(limit, group, "key")
    child = in_child(lambda: all(ratelimit.hit(limit, group, "key").owner == kind for _ in range(300)))
    decisions = [ratelimit.hit(limit, group, "key") for _ in range(300)]
    assert child()
    assert {decision.owner for decision in decisions} == {kind}
    assert ratelimit.peek(limit, group, "key").remaining == 100_000 - 601


@pytest.mark.parametrize("kind", ["redis", "memcached"])
def test_a_child_that_goes_on_with_a_loop_makes_connections_of_its_own(
    servers: dict[str, str], use: Callable[..., None], group: str, kind: str, in_child: InChild
) -> None:
    use(servers[kind])
    limit = Limit.parse("100000/d")

    async def hits() -> bool:
        return all([(await ratelimit.ahit(limit, group, "key")).owner == kind for _ in range(300)])

    with asyncio.Runner() as runner:
        assert runner.run(hits())
        assert in_child(lambda: runner.run(hits()))()
        assert runner.run(hits())
    assert ratelimit.peek(limit, group, "key").remaining == 100_000 - 900


@pytest.mark.parametrize("kind", SCHEMES)
def test_each_loop_has_connections_of_its_own_and_leaves_none(
    servers: dict[str, str], use: Callable[..., None], group: str, kind: str
) -> None:
    use(servers[kind])
    limit = Limit.parse("2/d")
    decisions = [asyncio.run(ratelimit.ahit(limit, group, "key")) for _ in range(3)]
    assert [(decision.allowed, decision.owner) for decision in decisions] == [(True, kind), (True, kind), (False, kind)]
    storage = runtime.get_limits_storage()
    assert storage is not None
    assert storage._loops == {}


# The asynchronous clients of clusters leave tasks and connections of their own behind when they are cut off.
@pytest.mark.parametrize(
    ("kind", "asynchronous"),
    [*((kind, False) for kind in SCHEMES), *((kind, True) for kind in SCHEMES if kind not in CLUSTERS)],
)
def test_hit_is_counted_once_though_the_connection_was_reset_before_its_answer(
    folder: Path, use: Callable[..., None], group: str, kind: str, asynchronous: bool
) -> None:
    port, limit = free_port(), Limit.parse("100/d")
    if kind in CLUSTERS:
        process = start_cluster(folder, port)
    elif kind == "memcached":
        process = start_memcached(folder, port)
    else:
        started = Redis(folder)
        process, port = started.process, int(started.address.rpartition(":")[2])
    try:
        wait_until(lambda: accepts(port), SECONDS, "a server")
        with Proxy(port) as proxy, asyncio.Runner() as runner:
            if kind in CLUSTERS:  # its clients go to the address that it tells
                with redis.Redis(port=port) as client:
                    client.config_set("cluster-announce-ip", "127.0.0.1")
                    client.config_set("cluster-announce-port", str(proxy.port))
            use(f"{kind}://127.0.0.1:{proxy.port}", DEADLINE)

            def hit() -> ratelimit.Decision:
                return (
                    runner.run(ratelimit.ahit(limit, group, "key"))
                    if asynchronous
                    else ratelimit.hit(limit, group, "key")
                )

            assert hit().owner == kind
            proxy.cut_on += [b"EVALSHA", b"incr"]
            assert hit().fallback == "process"
            assert not proxy.cut
            assert not proxy.cut_on
            found: list[ratelimit.Decision] = []

            def is_reached() -> bool:
                found.append(ratelimit.peek(limit, group, "key"))
                return found[-1].owner == kind

            wait_until(is_reached, SECONDS, "the storage is reached again")
            assert found[-1].remaining == 100 - 2
    finally:
        process.kill()


def test_clusters_that_share_an_engine_count_apart(on_redis: str, group: str) -> None:
    limit, key = Limit.parse("1/d"), routing_key(group, "key")
    for cluster in ("one", "two"):
        storage = LimitsStorage(on_redis, cluster, DEADLINE)
        assert [storage.run(operations.hit, key, limit.rules, 1)[0].allowed for _ in range(2)] == [True, False]
        storage.close()


# -- its users ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("on_redis")
@pytest.mark.parametrize("cost", [-1, 1.5, "1", None, True, MAX_COST + 1])
def test_a_wrong_cost_is_refused(functions: LimitFunctions, group: str, cost: Any) -> None:
    with pytest.raises(ValueError, match=rf"an integer from 0 to {MAX_COST}, not"):
        functions.hit(Limit.parse("1/s"), group, "key", cost)


@pytest.mark.usefixtures("on_redis")
async def test_decorated_views_are_limited_there_unchanged(group: str) -> None:
    @cluster_ratelimit(group=group, rate="2/d")
    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    @cluster_ratelimit(group=group, rate="2/d")
    async def aview(request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    requests = [RequestFactory().get("/") for _ in range(4)]
    responses = [view(requests[0]), await aview(requests[1]), view(requests[2]), await aview(requests[3])]
    assert [response.status_code for response in responses] == [200, 200, 429, 429]
    assert {request.ratelimit.owner for request in requests} == {"redis"}  # type: ignore[attr-defined]
    assert responses[2]["RateLimit"].startswith('"2/86400s";r=0;t=')


# -- the setting ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("10.0.0.1:6379", "must be redis://HOST:PORT"),
        ("postgres://me:s3cret@10.0.0.1:5432", "Its scheme must be one of: redis, rediss,"),
        ("redis+sentinel://:s3cret@10.0.0.1:26379", "Its scheme must be one of: redis, rediss,"),
        ("redis://:s3cret@10.0.0.1", "must be redis://HOST:PORT (one)"),
        ("redis://:s3cret@", "must be redis://HOST:PORT (one)"),
        ("redis://:s3cret@10.0.0.1:port", "must be redis://HOST:PORT"),
        ("redis://:s3cret@[::1:6379", "must be redis://HOST:PORT"),
        ("redis+unix://", "must be redis+unix:///PATH"),
        ("redis://:s3cret@a:1,b:2", "must be redis://HOST:PORT (one)"),
        ("memcached://a:1,b:2", "must be memcached://HOST:PORT (one)"),
        ("redis+cluster://:s3cret@a:1,b", "must be redis+cluster://HOST:PORT or several, separated by commas"),
    ],
)
def test_error_for_a_wrong_uri_says_what_is_allowed(uri: str, words: str) -> None:
    with pytest.raises(ImproperlyConfigured) as raised:
        LimitsStorage(uri, "default", 1.0)
    assert words in str(raised.value)
    assert "s3cret" not in str(raised.value)
    with override_settings(CLUSTERSTATE={"LIMITS_STORAGE": uri, "SECRET": "s" * 50}):
        (message,) = check_settings(None)
    assert message.id == "clusterstate.E007"
    assert words in message.msg
    assert message.hint


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("redis://me:s3cret@10.0.0.1:6379/3?health_check_interval=9", "redis://10.0.0.1:6379"),
        ("rediss://[::1]:6379", "rediss://[::1]:6379"),
        ("redis+unix:///run/redis.sock?db=1", "redis+unix:///run/redis.sock"),
        ("redis+cluster://:s3cret@a:1,b:2", "redis+cluster://a:1,b:2"),
        ("valkeys://a:1", "valkeys://a:1"),
        ("memcached://a:11211", "memcached://a:11211"),
    ],
)
def test_an_engine_is_named_without_its_credentials(uri: str, place: str) -> None:
    assert str(Engine(uri)) == f"limits storage {place}"
    with override_settings(CLUSTERSTATE={"LIMITS_STORAGE": uri, "SECRET": "s" * 50}):
        assert check_settings(None) == []


@pytest.mark.parametrize(
    ("uri", "package", "install"),
    [
        ("redis://a:1", "limits", "pip install 'django-clusterstate[limits]' redis"),
        ("redis://a:1", "redis", "pip install 'django-clusterstate[limits]' redis"),
        ("valkey://a:1", "valkey", "pip install 'django-clusterstate[limits]' valkey"),
        ("memcached://a:1", "memcachio", "pip install 'django-clusterstate[limits]' pymemcache memcachio"),
    ],
)
def test_error_names_the_missing_package_and_how_to_install_it(
    uri: str, package: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with override_settings(CLUSTERSTATE={"LIMITS_STORAGE": uri, "SECRET": "s" * 50}):
        (message,) = check_settings(None)
    assert message.id == "clusterstate.E007"
    assert f"needs the package {package!r}" in message.msg
    assert install in message.msg


@pytest.mark.parametrize(("algorithm", "longest"), [("fixed_window", 30), ("sliding_window", 15), ("token_bucket", 15)])
def test_memcached_gets_no_period_that_it_takes_for_a_date(
    servers: dict[str, str],
    use: Callable[..., None],
    functions: LimitFunctions,
    group: str,
    algorithm: str,
    longest: int,
) -> None:
    use(servers["memcached"])
    limit = Limit.parse(f"1/{longest}d", algorithm)
    assert [functions.hit(limit, group, "key").allowed for _ in range(2)] == [True, False]
    with pytest.raises(ImproperlyConfigured, match="at most 30 days in a fixed window, and at most 15 days"):
        functions.hit(Limit.parse(f"1/{longest + 1}d", algorithm), group, "key")


def test_without_the_setting_the_nodes_count(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime.forget()
    assert runtime.get_limits_storage() is None


# -- sliding windows: the script on Redis, and the estimate on Memcached ------------------------------------------


@given(
    limit=st.integers(1, 9),
    period=st.integers(1, 3600),
    some=st.lists(st.tuples(st.one_of(st.floats(0, 1.2), st.just(0.0), st.just(1.0)), st.integers(0, 4)), max_size=40),
    ago=st.none() | st.floats(0, 1.2),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_script_decides_as_a_node_does(
    on_redis: str, limit: int, period: int, some: list[tuple[float, int]], ago: float | None
) -> None:
    client = redis.Redis.from_url(on_redis)
    script = scripts.SLIDING_WINDOW.replace("redis.call('time')", "{ARGV[4], ARGV[5]}")
    refund_script = scripts.REFUND_SLIDING_WINDOW.replace("redis.call('time')", "{ARGV[5], ARGV[6]}")
    rule, name, clock = Rule(Algorithm.SLIDING_WINDOW, limit, float(period)), uuid4().hex, 1_800_000_000_000_000
    expected: algorithms.LimitState | None = None
    for wait, cost in some:
        clock += round(wait * period * 1e6)
        answer = client.eval(script, 1, name, limit, rule.period, cost, *divmod(clock, 10**6))
        state, now = operations._parse_count(answer)
        assert state in (expected, None)
        decision, after, _ = algorithms.decide(rule, state, cost, now)
        assert bool(answer[0]) == (decision.allowed and cost > 0)
        if answer[0]:
            expected = after
        if expected is not None and ago is not None:
            client.eval(refund_script, 1, name, 2, limit, rule.period, ago * period, *divmod(clock, 10**6))
            refunded = algorithms._refund_sliding_window(rule, expected, 2, now - ago * period, now)
            expected, _ = operations._parse_count(
                client.eval(script, 1, name, limit, rule.period, 0, *divmod(clock, 10**6))
            )
            assert expected is None or expected == pytest.approx(refunded)
    client.close()


@pytest.mark.parametrize("kind", ["redis", "valkey", *CLUSTERS])
def test_scripts_that_an_engine_has_forgotten_are_sent_again(
    servers: dict[str, str], use: Callable[..., None], functions: LimitFunctions, group: str, kind: str
) -> None:
    use(servers[kind])
    limit = Limit.parse("9/d", "sliding_window")
    for left in (8, 7):
        assert functions.hit(limit, group, "key").remaining == left
        port = int(servers[kind].partition("//")[2].partition("/")[0].rpartition(":")[2])
        client = redis.Redis(port=port)
        client.script_flush()
        client.close()


def test_threads_that_make_a_storage_at_once_share_one_and_close_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    together, closed = threading.Barrier(8, timeout=SECONDS), []

    def connect(*args: object, **options: object) -> Any:
        made = mock.Mock()
        made.storage.close = lambda: closed.append(made)
        together.wait()
        return made

    monkeypatch.setattr(engines, "_connect", connect)
    client = engines.EngineClient(mock.Mock(), DEADLINE)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: client.storage, range(8)))
    assert len(set(found)) == 1
    assert len(closed) == 7
    assert found[0] not in closed


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_hits_on_redis_admitted_in_any_period_are_at_most_the_limit(
    servers: dict[str, str], use: Callable[..., None], group: str, kind: str
) -> None:
    """For three seconds, as fast as it goes. Two buckets would admit up to twice the limit in one of them."""
    use(servers[kind])
    limit, began = Limit.parse("20/s", "sliding_window"), time.monotonic()
    passed: list[tuple[float, float]] = []
    while len(passed) < 41 or time.monotonic() < began + 3:
        asked = time.monotonic()
        assert asked < began + SECONDS, f"{len(passed)} hits passed"
        if ratelimit.hit(limit, group, "key", fresh=True).allowed:
            passed.append((asked, time.monotonic()))  # it was decided between the two times
    assert all(passed[i + 20][1] - passed[i][0] > 0.98 for i in range(len(passed) - 20))


class Buckets:
    """Two buckets as `limits` keeps them on Memcached, in milliseconds."""

    def __init__(self, limit: int, period: int) -> None:
        self.rule = Rule(Algorithm.SLIDING_WINDOW, limit, float(period))
        self.start = self.previous = self.current = 0

    def counts(self, now: int) -> operations.BucketsReading:
        period = int(self.rule.period * 1000)
        if now - self.start > 2 * period or not self.current + self.previous:
            self.start, self.previous, self.current = now, 0, 0
        elif now - self.start > period:
            self.start, self.previous, self.current = self.start + period, self.current, 0
        return operations.BucketsReading((self.start - now) / 1000, self.previous, self.current)

    def hit(self, now: int, cost: int = 1) -> algorithms.RuleDecision:
        decision = operations.estimate(self.rule, self.counts(now), cost)
        period = int(self.rule.period * 1000)
        share = math.floor(self.previous * (self.start + period - now) / period)
        assert decision.allowed == (max(share, 0) + self.current + cost <= self.rule.limit)
        self.current += cost * decision.allowed
        return decision


@given(
    st.integers(1, 9), st.integers(1, 60), st.lists(st.tuples(st.integers(0, 90_000), st.integers(1, 3)), max_size=60)
)  # fmt: skip
def test_at_most_twice_the_limit_passes_in_a_period_and_after_retry_after_the_same_cost(
    limit: int, period: int, some: list[tuple[int, int]]
) -> None:
    buckets, now, admitted = Buckets(limit, period), 1_000_000, []
    for wait, cost in some:
        now += wait
        decision = buckets.hit(now, cost)
        if decision.allowed:
            admitted.append((now, cost))
        elif cost <= limit:
            assert decision.retry_after <= (period if cost == 1 else 2 * period) + 2 * operations.CLOCK_RESOLUTION
            start, previous, current = buckets.counts(now)
            later = operations.BucketsReading(
                start - decision.retry_after - operations.CLOCK_RESOLUTION, previous, current
            )
            assert operations.estimate(buckets.rule, later, cost).allowed
    for at, _ in admitted:
        assert sum(cost for then, cost in admitted if at <= then < at + period * 1000) <= 2 * limit


@given(st.integers(1, 200), st.integers(1, 3600), st.floats(1, 3))
def test_client_that_keeps_a_few_milliseconds_below_the_rate_is_never_denied(
    limit: int, period: int, slowness: float
) -> None:
    buckets, now = Buckets(limit, period), 1_000_000
    for _ in range(min(5 * limit, 1000)):
        assert buckets.hit(now).allowed
        now += math.ceil(slowness * period * 1000 / limit) + 1
