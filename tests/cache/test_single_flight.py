"""`get_or_set()`: which caller computes, and how long the others wait. First with simulated callers and a simulated
owner, then with real nodes."""

import asyncio
import heapq
import itertools
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured

from django_clusterstate import cluster as cluster_state
from django_clusterstate import runtime
from django_clusterstate.cache import ClusterCache
from django_clusterstate.cache.single_flight import Compute, SingleFlight
from django_clusterstate.client.operations import Operation, Sleep
from django_clusterstate.core.cache.entry_keys import auxiliary_key
from django_clusterstate.core.cache.store import CacheStore
from django_clusterstate.wire import messages as wire
from django_clusterstate.wire.framing import frame
from testproject.processes import LocalCluster, Process, wait_until
from tests.cache_variants import CacheVariant, CacheVariants
from tests.conftest import using
from tests.timing import check_seconds

KEY = b"space\0:1:key"
LEASE = 10.0


# -- simulated --------------------------------------------------------------------------------------------------


class Gone(BaseException):
    """Stands for a value whose computing process was killed."""


class World:
    """Callers of one entry, its owner, and a clock. Requests take a random time, to the owner and back."""

    def __init__(self, seed: int = 0) -> None:
        self.now = 0.0
        self.computed: list[float] = []  # when a computation began
        self.results: dict[int, tuple[float, Any]] = {}  # by caller, when and what
        self.down = False
        self._random = random.Random(seed)
        self._store: CacheStore[wire.Value] = CacheStore(10**6, size_of=lambda value: 8)
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def flight(self, ttl: float | None = 100.0, stale: float = 0.0) -> SingleFlight:
        return SingleFlight(
            KEY, None, ttl, stale, LEASE, _call, _dump, _load, no_room=lambda: None, clock=lambda: self.now
        )

    def call(self, at: float, compute: Callable[[], tuple[float, Any]], *, stale: float = 0.0) -> int:
        """A caller that arrives `at` a time. `compute` returns its duration, and the value or the exception."""
        caller = next(self._numbers)
        flight = self.flight(stale=stale)
        operation = flight.serve_stale_or_compute() if stale else flight.compute_or_wait()
        self._later(at - self.now, lambda: self._go_on(caller, operation, compute, None))
        return caller

    def run(self) -> None:
        while self._agenda:
            self.now, _, act = heapq.heappop(self._agenda)
            act()

    def put(self, value: wire.Value | None, ttl: float | None = None, key: bytes = KEY) -> None:
        self.answer(wire.Delete([key]) if value is None else wire.Set([(key, value)], ttl))

    def has(self, key: bytes) -> bool:
        return self._store.get(key, self.now) is not None

    def answer(self, request: object) -> wire.Reply | None:
        if self.down:
            return None
        if isinstance(request, wire.Get):
            return wire.ValuesReply(0, [self._store.get(key, self.now) for key in request.keys])
        if isinstance(request, wire.Set):
            store = self._store.add if request.absent else self._store.set
            flags = [store(key, value, request.ttl, self.now) for key, value in request.items]
            for key in request.deletes if all(flags) else ():
                self._store.delete(key, self.now)
            return wire.FlagsReply(0, flags, tuple(self._store.get(key, self.now) for key in request.reads))
        assert isinstance(request, wire.Delete)
        held = [self._store.get(key, self.now) for key in request.keys]
        return wire.FlagsReply(
            0,
            [
                value == (request.expected or value) and self._store.delete(key, self.now)
                for key, value in zip(request.keys, held, strict=True)
            ],
        )

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (self.now + seconds, next(self._numbers), act))

    def _go_on(
        self, caller: int, operation: Operation[Any], compute: Callable[[], tuple[float, Any]], done: Any
    ) -> None:
        try:
            command = operation.throw(done) if isinstance(done, BaseException) else operation.send(done)
        except StopIteration as end:
            self.results[caller] = (self.now, end.value)
            return
        except ValueError as error:
            self.results[caller] = (self.now, error)
            return

        def go_on(done: Any) -> None:
            self._go_on(caller, operation, compute, done)

        if isinstance(command, Compute):
            self.computed.append(self.now)
            seconds, value = compute()
            if value is not Gone:
                self._later(seconds, lambda: go_on(value))
        elif isinstance(command, Sleep):
            self._later(command.seconds, lambda: go_on(None))
        else:
            there, back = self._random.random() / 1000, self._random.random() / 1000
            self._later(there, lambda: self._reply(command, back, go_on))

    def _reply(self, request: object, back: float, go_on: Callable[[Any], None]) -> None:
        reply = self.answer(request)
        self._later(back, lambda: go_on(reply))


def _call(key: bytes, request: wire.Request) -> Any:
    """Returns the request itself, which the world answers."""
    assert key == KEY
    return request


def _dump(value: Any) -> Operation[wire.Value | None]:
    yield from ()
    return None if value == "too big" else str(value).encode()


def _load(value: wire.Value, default: Any) -> Any:
    return default if value == b"unreadable" else bytes(value).decode() if isinstance(value, bytes) else value


@pytest.mark.parametrize("seed", range(50))
def test_of_all_callers_that_miss_at_once_one_computes(seed: int) -> None:
    world = World(seed)
    arrivals = random.Random(seed)
    callers = [world.call(arrivals.random() * 0.6, lambda: (0.5, "value")) for _ in range(64)]
    world.run()
    assert len(world.computed) == 1
    assert [world.results[caller][1] for caller in callers] == ["value"] * 64
    assert max(when for when, _ in world.results.values()) < 0.5 + 0.6 + 0.06
    assert not world.has(auxiliary_key(KEY, b"lease"))


def test_when_the_computation_fails_another_takes_its_turn_at_once() -> None:
    world = World()
    outcomes = iter([(0.5, ValueError("first")), (0.5, ValueError("second")), (0.5, "value")])
    for _ in range(10):
        world.call(0.0, lambda: next(outcomes))
    world.run()
    found = [value for _, value in world.results.values()]
    assert sorted(map(str, found)) == ["first", "second", *["value"] * 8]
    assert max(when for when, _ in world.results.values()) < 1.5 + 3 * 0.06


def test_when_the_computing_process_is_gone_one_takes_over_after_the_lease() -> None:
    world = World()
    outcomes = iter([(0.0, Gone), (2.0, "value")])
    for number in range(20):
        world.call(number / 10, lambda: next(outcomes))
    world.run()
    assert len(world.computed) == 2
    assert world.computed[1] == pytest.approx(LEASE, abs=0.06)
    assert [value for _, value in world.results.values()] == ["value"] * 19


def test_nobody_waits_for_longer_than_two_leases() -> None:
    world = World()
    for number in range(20):
        world.call(number / 10, lambda: (100.0, "value"))
    world.run()
    assert len(world.computed) == 20
    assert max(world.computed) < 2 + 2 * LEASE + 0.1


@pytest.mark.parametrize("stale", [0.0, 60.0])
def test_a_caller_whose_lease_reply_was_lost_computes_once_it_sees_its_own_lease(stale: float) -> None:
    world = World()
    operation = world.flight(stale=stale).compute_or_wait()
    acquire = next(operation)
    world.answer(acquire)  # the reply is lost with the connection, and the request is sent again
    assert isinstance(operation.send(world.answer(acquire)), Sleep)
    poll = operation.send(None)
    assert isinstance(operation.send(world.answer(poll)), Compute)

    def go_on() -> None:
        request = operation.send("value")
        while True:
            request = operation.send(world.answer(request))

    with pytest.raises(StopIteration) as end:
        go_on()
    assert end.value.value == "value"
    assert not world.has(auxiliary_key(KEY, b"lease"))


def test_a_caller_that_computes_for_longer_than_its_lease_doesnt_release_anothers() -> None:
    world = World()
    world.call(0.0, lambda: (LEASE + 2, "late"))
    world.call(1.0, lambda: (5.0, "second"))
    third = world.call(LEASE + 3, lambda: (1.0, "third"))
    world.run()
    assert len(world.computed) == 2
    assert world.results[third][1] == "late"


@pytest.mark.parametrize("stale", [0.0, 60.0])
def test_a_caller_that_is_interrupted_while_it_releases_its_lease_doesnt_release_anothers(stale: float) -> None:
    world = World()
    first = world.flight(stale=stale).compute_or_wait()
    command: object = next(first)
    while not (isinstance(command, wire.Set) and command.deletes):
        command = first.send("value" if isinstance(command, Compute) else world.answer(command))
    world.answer(command)  # the first gets no reply
    world.put(None)
    world.answer(next(world.flight(stale=stale).compute_or_wait()))
    reply = world.answer(first.throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        first.send(reply)
    assert world.has(auxiliary_key(KEY, b"lease"))


@pytest.mark.parametrize("stale", [0.0, 60.0])
def test_a_caller_with_the_lease_computes_where_the_reply_has_no_values(stale: float) -> None:
    operation = World().flight(stale=stale).compute_or_wait()
    next(operation)
    assert isinstance(operation.send(wire.FlagsReply(0, [True])), Compute)  # from a node that doesn't know `reads`


def test_a_value_that_cant_be_kept_is_computed_by_each_without_waiting_in_turn() -> None:
    world = World()
    for _ in range(20):
        world.call(0.0, lambda: (1.0, "too big"))
    world.run()
    assert len(world.computed) == 20
    assert max(when for when, _ in world.results.values()) < 1.0 + 1.0 + 0.1


def test_without_an_owner_each_computes_at_once() -> None:
    world = World()
    world.down = True
    for _ in range(3):
        world.call(0.0, lambda: (1.0, "value"))
        world.call(0.0, lambda: (1.0, "value"), stale=5.0)
    world.run()
    assert len(world.computed) == 6
    assert max(when for when, _ in world.results.values()) < 1.01


def test_a_value_that_cant_be_read_is_replaced() -> None:
    world = World()
    world.put(b"unreadable")
    for _ in range(5):
        world.call(0.0, lambda: (1.0, "value"))
    world.run()
    assert len(world.computed) == 1
    assert {value for _, value in world.results.values()} == {"value"}


@pytest.mark.parametrize("seed", range(20))
def test_a_stale_value_is_renewed_by_one_while_the_others_go_on_with_it(seed: int) -> None:
    world = World(seed)
    first = world.call(0.0, lambda: (1.0, "old"), stale=60.0)
    fresh = world.call(100.5, lambda: (1.0, "new"), stale=60.0)
    stale = [world.call(102.0 + number / 100, lambda: (1.0, "new"), stale=60.0) for number in range(50)]
    renewed = world.call(104.0, lambda: (1.0, "newer"), stale=60.0)
    world.run()
    assert world.results[first][1] == world.results[fresh][1] == "old"
    assert len(world.computed) == 2
    others = [world.results[caller] for caller in stale if world.results[caller][1] == "old"]
    assert len(others) == 49
    assert max(when for when, _ in others) < 102.5 + 0.01
    assert world.results[renewed][1] == "new"


def test_a_value_that_is_too_old_even_to_be_stale_is_a_miss() -> None:
    world = World()
    world.call(0.0, lambda: (1.0, "old"), stale=60.0)
    late = [world.call(162.0, lambda: (1.0, "new"), stale=60.0) for _ in range(10)]
    world.run()
    assert len(world.computed) == 2
    assert {world.results[caller][1] for caller in late} == {"new"}


def test_a_deleted_value_is_computed_once_though_it_was_fresh() -> None:
    world = World()
    world.call(0.0, lambda: (1.0, "old"), stale=60.0)
    world._later(5.0, lambda: world.put(None))
    late = [world.call(6.0, lambda: (1.0, "new"), stale=60.0) for _ in range(30)]
    world.run()
    assert len(world.computed) == 2
    assert {world.results[caller][1] for caller in late} == {"new"}


def test_a_renewal_that_fails_leaves_the_stale_value_and_the_next_tries_again() -> None:
    world = World()
    world.call(0.0, lambda: (1.0, "old"), stale=60.0)
    failed = world.call(110.0, lambda: (1.0, ValueError("no")), stale=60.0)
    meanwhile = world.call(110.5, lambda: (1.0, "new"), stale=60.0)
    again = world.call(112.0, lambda: (1.0, "new"), stale=60.0)
    world.run()
    assert str(world.results[failed][1]) == "no"
    assert world.results[meanwhile][1] == "old"
    assert world.results[again][1] == "new"


# -- with nodes, blocking and async------------------------------------------------------------------------------


class Slow:
    """A default that takes some seconds and counts its calls."""

    def __init__(self, seconds: float = 0.3, value: Any = "value") -> None:
        self.seconds = seconds
        self.value = value
        self.calls = 0
        self.begun = threading.Event()

    def __call__(self) -> Any:
        self.calls += 1
        self.begun.set()
        time.sleep(self.seconds)
        return self.value


class SlowCoroutine(Slow):
    async def compute(self) -> Any:
        self.calls += 1
        self.begun.set()
        await asyncio.sleep(self.seconds)
        return self.value


def make_slow(variants: CacheVariants, seconds: float = 0.3, value: Any = "value") -> tuple[Slow, Callable[[], Any]]:
    if variants.runner is None:
        slow = Slow(seconds, value)
        return slow, slow
    slow_coroutine = SlowCoroutine(seconds, value)
    return slow_coroutine, slow_coroutine.compute


@pytest.mark.parametrize("value", ["value", None, 7, [1, 2]])
def test_64_callers_at_once_compute_once(variants: CacheVariants, value: Any) -> None:
    slow, default = make_slow(variants, value=value)
    assert variants["default"].at_once("get_or_set", [("key", default, 60)] * 64, threads=64) == [value] * 64
    assert slow.calls == 1
    assert variants["default"].get("key", "default") == value


def test_a_coroutine_function_is_awaited_and_a_function_called(variants: CacheVariants) -> None:
    _, default = make_slow(variants, 0.0)
    assert variants["default"].get_or_set("key", default) == "value"
    assert variants["default"].get_or_set("other", lambda: "plain") == "plain"


@pytest.mark.timing
def test_an_exception_of_default_is_raised_and_the_next_caller_computes_at_once(cache: CacheVariant) -> None:
    def fails() -> None:
        raise LookupError("no row")

    for _ in range(2):
        with pytest.raises(LookupError, match="no row"):
            cache.get_or_set("key", fails)
    start = time.monotonic()
    assert cache.get_or_set("key", lambda: "value") == "value"
    check_seconds(time.monotonic() - start, below=1)


@pytest.mark.timing
def test_a_value_that_cant_be_stored_raises_and_the_next_computes_at_once(cache: CacheVariant) -> None:
    with pytest.raises(Exception, match="pickle"):
        cache.get_or_set("key", lambda: lambda: None)
    start = time.monotonic()
    assert cache.get_or_set("key", lambda: "value") == "value"
    check_seconds(time.monotonic() - start, below=1)


def test_the_first_gets_the_value_as_the_others_will(variants: CacheVariants) -> None:
    cache = variants.made_with({"SERIALIZER": "json"})
    assert cache.get_or_set("key", lambda: (1, 2)) == [1, 2] == cache.get("key")
    assert cache.get_or_set("plain", (1, 2)) == [1, 2]


def test_a_hit_is_one_request(cache: CacheVariant, requests: list[wire.Message]) -> None:
    cache.set("key", 1)
    cache.get_or_set("stale", lambda: 1, stale=60)
    requests.clear()
    assert cache.get_or_set("key", lambda: 2) == 1
    assert cache.get_or_set("stale", lambda: 2, stale=60) == 1
    assert len(requests) == 2


@pytest.mark.parametrize(("stale", "count"), [(0, 3), (60, 4)])
def test_a_miss_is_three_requests_and_with_a_mark_four(
    cache: CacheVariant, requests: list[wire.Message], stale: int, count: int
) -> None:
    assert cache.get_or_set("key", lambda: "value", stale=stale) == "value"
    assert len(requests) == count


def test_a_timeout_of_zero_stores_nothing(cache: CacheVariant) -> None:
    assert cache.get_or_set("key", lambda: "value", 0) == "value"
    assert cache.get_or_set("key", "other", 0) == "other"
    assert cache.has_key("key") is False


def test_iter_keys_doesnt_yield_auxiliary_keys(cache: CacheVariant) -> None:
    cache.get_or_set("key", lambda: "value", stale=60)
    assert cache.iter_keys("*") == ["key"]


def test_the_lease_is_deleted_once_the_value_is_stored(cache: CacheVariant) -> None:
    cache.get_or_set("key", lambda: "value")
    wire_key = caches["default"].routing_key("key")  # type: ignore[attr-defined]
    (reply,) = cluster_call(wire_key, wire.Get([auxiliary_key(wire_key, b"lease")])).values
    assert reply is None


def cluster_call(key: bytes, request: wire.Request) -> Any:
    return runtime.get_client().call(key, frame(wire.encode(request)))


@pytest.mark.timing
def test_a_stale_value_is_served_while_one_computes(variants: CacheVariants) -> None:
    cache = variants["default"]
    assert cache.get_or_set("key", lambda: "old", 60, stale=60) == "old"
    assert cache.get_or_set("key", lambda: "new", 60, stale=60) == "old"
    key = caches["default"].routing_key("key")  # type: ignore[attr-defined]
    assert cluster_call(key, wire.Delete([auxiliary_key(key, b"fresh")])).flags == [True]  # as when it expires
    slow, default = make_slow(variants, 0.5, "new")
    start = time.monotonic()
    found = cache.at_once("get_or_set", [("key", default, 60, None)] * 16, threads=16, stale=60)
    assert sorted(found) == ["new"] + ["old"] * 15
    assert slow.calls == 1
    check_seconds(time.monotonic() - start, below=2)
    assert cache.get_or_set("key", lambda: "newer", 60, stale=60) == "new"


def test_stale_takes_a_plain_value_and_a_version(cache: CacheVariant) -> None:
    assert cache.get_or_set("key", "value", 60, 2, stale=60) == "value"
    assert cache.get_or_set("key", "other", 60, version=2, stale=60) == "value"
    assert cache.get("key", version=2) == "value"
    assert cache.has_key("key") is False
    for senseless in (-1, "1", None):
        with pytest.raises(ValueError, match="stale must be seconds"):
            cache.get_or_set("key", "value", stale=senseless)


@pytest.mark.usefixtures("cache")
def test_a_default_that_must_be_awaited_is_sent_to_aget_or_set() -> None:
    async def default() -> str:
        return "value"

    with pytest.raises(TypeError, match=r"use aget_or_set\(\)"):
        caches["default"].get_or_set("key", default)
    assert not caches["default"].has_key("key")


@pytest.mark.usefixtures("nowhere")
@pytest.mark.timing
def test_without_a_node_get_or_set_computes_at_once(unconnected: CacheVariants) -> None:
    for stale in (0.0, 60.0):
        start = time.monotonic()
        assert unconnected["default"].get_or_set("key", lambda: "value", stale=stale) == "value"
        check_seconds(time.monotonic() - start, below=0.5)


@pytest.mark.parametrize("lease", [0, -1, "10", None, True, float("inf")])
def test_a_wrong_lease_is_refused(lease: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="LEASE must be a number of seconds above 0"):
        ClusterCache("", {"OPTIONS": {"LEASE": lease}})


@pytest.mark.usefixtures("cluster")
def test_a_task_that_is_cancelled_while_it_computes_gives_the_lease_back() -> None:
    cache = ClusterCache("cache-tests", {"OPTIONS": {"LEASE": 600}})

    async def scene() -> None:
        begun = asyncio.Event()

        async def endless() -> None:
            begun.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(cache.aget_or_set("cancelled", endless))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(60):
            assert await cache.aget_or_set("cancelled", lambda: "value") == "value"
        await cache.adelete("cancelled")

    asyncio.run(scene())


# -- processes --------------------------------------------------------------------------------------------------

STAMPEDE = """
import sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import django
django.setup()
from django_clusterstate.cache import ClusterCache

folder, seconds, lease, threads = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
cache = ClusterCache("stampede", {"OPTIONS": {"LEASE": lease}})

def default():
    with open(folder / "computed", "a") as file:
        file.write("x")
    time.sleep(seconds)
    return "value"

cache.get("anything")
print("ready", flush=True)
while not (folder / "go").exists():
    time.sleep(0.001)
with ThreadPoolExecutor(threads) as pool:
    found = list(pool.map(lambda _: cache.get_or_set("key", default, 60), range(threads)))
print("found", found == ["value"] * threads, flush=True)
"""


class Stampede:
    """Processes that all request the same entry once `go()` is called."""

    def __init__(self, cluster: LocalCluster, folder: Path) -> None:
        self._cluster = cluster
        self.folder = folder
        self.processes: list[Process] = []

    def add(self, host: str, *, seconds: float, lease: float = 10.0, threads: int = 16) -> Process:
        command = [sys.executable, "-c", STAMPEDE, str(self.folder), str(seconds), str(lease), str(threads)]
        env = {"CLUSTERSTATE_DEADLINE": "10", **self._cluster.env(host)}
        process = Process(command, self.folder / f"stampede{len(self.processes)}.log", env)
        self.processes.append(process)
        return process

    def go(self) -> None:
        wait_until(lambda: all("ready" in process.output() for process in self.processes), 60, "all ready")
        (self.folder / "go").touch()

    @property
    def computed(self) -> int:
        file = self.folder / "computed"
        return file.stat().st_size if file.exists() else 0


@pytest.fixture
def stampede(cluster: LocalCluster, folder: Path) -> Iterator[Stampede]:
    made = Stampede(cluster, folder)
    yield made
    for process in made.processes:
        process.kill()
    ClusterCache("stampede", {}).clear()


def test_several_processes_on_several_hosts_compute_once(stampede: Stampede) -> None:
    processes = [stampede.add(host, seconds=1.0) for host in ("alpha", "beta", "gamma", "alpha")]
    stampede.go()
    assert [process.wait(60) for process in processes] == [0] * 4
    assert ["found True" in process.output() for process in processes] == [True] * 4
    assert stampede.computed == 1


@pytest.mark.timing
def test_when_the_computing_process_is_killed_another_takes_over_after_the_lease(stampede: Stampede) -> None:
    victim = stampede.add("alpha", seconds=60, lease=2.0, threads=1)
    start = time.monotonic()
    stampede.go()
    wait_until(lambda: stampede.computed == 1, 60, "the first computes")
    victim.kill()
    cache = ClusterCache("stampede", {"OPTIONS": {"LEASE": 60}})
    slow = Slow(0.2)
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda _: cache.get_or_set("key", slow, 60), range(16)))
    assert found == ["value"] * 16
    assert slow.calls == 1
    check_seconds(time.monotonic() - start, below=6.0, at_least=2.0)


@pytest.mark.timing
def test_when_the_owner_is_killed_nobody_gets_an_error_and_nobody_hangs(folder: Path) -> None:
    with LocalCluster(folder, ["alpha", "beta", "gamma"], env={"CLUSTERSTATE_DOWN_AFTER": "60"}) as cluster:
        cluster.start()
        cluster.wait_for()
        with using(cluster, "alpha"):
            cache = ClusterCache("flight", {})
            keys = (f"key{number}" for number in range(1000))
            key = next(key for key in keys if cluster_state.owner(cache.routing_key(key)) == "beta")
            slow = Slow(1.0)
            start = time.monotonic()
            with ThreadPoolExecutor(64) as threads:
                calls = [threads.submit(cache.get_or_set, key, slow, 60) for _ in range(64)]
                assert slow.begun.wait(60)
                cluster.kill("beta")
                assert [call.result(60) for call in calls] == ["value"] * 64
            check_seconds(time.monotonic() - start, below=8)
            assert cache.get_or_set(key, lambda: "again", 60) in ("value", "again")
