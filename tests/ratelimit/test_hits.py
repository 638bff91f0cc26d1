"""Limits that hold across nodes, processes, threads and tasks, and what answers when no node does."""

import asyncio
import inspect
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings
from hypothesis import given
from hypothesis import strategies as st

from django_clusterstate import cluster as cluster_state
from django_clusterstate import ratelimit, runtime
from django_clusterstate.client.aio import AsyncClient
from django_clusterstate.client.blocking import Client
from django_clusterstate.client.dialing import Dialer
from django_clusterstate.client.routing import Routing, RoutingTable, Target
from django_clusterstate.core.limits.algorithms import Algorithm, Rule
from django_clusterstate.core.membership.heartbeat import Identity, View
from django_clusterstate.ratelimit import (
    ALGORITHMS,
    MAX_COST,
    Decision,
    Limit,
    denial_cache,
    hits,
    routing_key,
    split_key,
)
from django_clusterstate.ratelimit.denial_cache import MAX_AGE, DenialCache
from django_clusterstate.ratelimit.fallback import ProcessLimiter
from django_clusterstate.settings import POLICIES
from django_clusterstate.wire import messages as wire
from django_clusterstate.wire.address import TcpAddress, UnixAddress
from testproject.processes import ROOT, LocalCluster, free_port, wait_until
from tests.counting import watch_requests
from tests.faults.proxy import Proxy
from tests.forks import InChild
from tests.ratelimit.conftest import LimitFunctions
from tests.timing import check_seconds, is_left

Hit = Callable[..., Decision]
DEAD = "dead"


@pytest.fixture
def hit(functions: LimitFunctions) -> Hit:
    return functions.hit


@pytest.fixture(autouse=True)
def counts_nothing_yet() -> None:
    for name, kept in list(runtime._shared.items()):
        if isinstance(kept, ProcessLimiter | DenialCache):
            del runtime._shared[name]
    hits._process_limiter.cache_clear()
    hits._denials.cache_clear()


@pytest.fixture
def dead_owner(cluster: LocalCluster, group: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A key whose owner doesn't answer, while this host's node does."""
    status = cluster.status("alpha")
    assert status is not None
    dead = Identity(DEAD, b"\0" * 16, f"127.0.0.1:{free_port()}")
    _fix_view(monkeypatch, View.of([status.identity, dead]), "alpha")
    return next(key for key in map(str, range(1000)) if cluster_state.owner(routing_key(group, key)) == DEAD)


def _fix_view(monkeypatch: pytest.MonkeyPatch, view: View, local: str) -> None:
    """This process has this view from now on."""

    async def table(self: AsyncClient) -> RoutingTable:
        return self.routing.table

    monkeypatch.setattr(Client, "table", lambda self: self.routing.table)
    monkeypatch.setattr(AsyncClient, "table", table)
    routing = runtime.get_routing()
    routing.learn(wire.ViewReply(view.epoch, view.members, local), routing.local, time.monotonic())


# -- Limit ------------------------------------------------------------------------------------------------------


def test_a_limit_is_parsed_from_one_rate_or_several() -> None:
    assert Limit.parse("10/m") == Limit((Rule(Algorithm.FIXED_WINDOW, 10, 60.0),))
    assert Limit.parse(["10/s", "100/2h"], "token_bucket", "deny") == Limit(
        (Rule(Algorithm.TOKEN_BUCKET, 10, 1.0), Rule(Algorithm.TOKEN_BUCKET, 100, 7200.0)), "deny"
    )
    assert Limit.parse((rate for rate in ["1/s"]), "sliding_window").rules[0].algorithm is Algorithm.SLIDING_WINDOW
    assert Limit.parse((10, 60)) == Limit.parse("10/60") == Limit.parse("10/minute") == Limit.parse("10/m")
    assert Limit.parse([(10, 60), "100/h"]) == Limit.parse(("10/m", "100/h")) == Limit.parse(((10, 60), (100, 3600)))
    assert Limit.parse(["10/m", "100/h", "10/60s", "10/m"]) == Limit.parse(["10/m", "100/h"])  # each counts once


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("10",), "'10' is not a rate; a rate is hits/period"),
        (("10/x",), "'10/x' is not a rate"),
        (("-1/s",), "'-1/s' is not a rate"),
        (("1/0s",), "'1/0s' is not a rate"),
        (("",), "'' is not a rate"),
        ((["1/s", "junk"],), "'junk' is not a rate"),
        (([],), "needs from 1 to 16 rates, such as '10/m'; got 0"),
        (([f"{n}/s" for n in range(17)],), "from 1 to 16 rates, such as '10/m'; got 17"),
        ((10,), "10 is not a rate; write '10/m', or ['10/s', '100/h']"),
        (([10],), "[10] is not a rate"),
        ((None,), "None is not a rate"),
        (((10, 0),), "(10, 0) is not a rate; a pair is (hits, whole seconds)"),
        (((10, None),), "(10, None) is not a rate"),
        (([10, 60],), "[10, 60] is not a rate"),
        (((10, 60, 60),), "(10, 60, 60) is not a rate"),
        (([(10, 60, 60)],), "[(10, 60, 60)] is not a rate"),
        (("1/s", "leaky"), "unknown algorithm 'leaky'; choose one of fixed_window, sliding_window, token_bucket"),
        (("1/s", "fixed_window", "explode"), "unknown on_unavailable 'explode'; choose one of local, allow, deny"),
    ],
)
def test_error_for_a_wrong_limit_says_what_is_allowed(args: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ImproperlyConfigured) as raised:
        Limit.parse(*args)
    assert words in str(raised.value)


def test_parsing_a_limit_needs_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    def unready() -> None:
        raise ImproperlyConfigured

    monkeypatch.setattr(runtime, "get_settings", unready)
    Limit.parse("10/m")


# -- hits -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_limit_allows_its_number_of_hits(hit: Hit, group: str, algorithm: str) -> None:
    limit = Limit.parse("3/d", algorithm)
    decisions = [hit(limit, group, "key") for _ in range(5)]
    assert [decision.allowed for decision in decisions] == [True] * 3 + [False] * 2
    assert [decision.remaining for decision in decisions] == [2, 1, 0, 0, 0]
    assert {decision.limit for decision in decisions} == {3}
    assert {decision.period for decision in decisions} == {86400.0}
    assert {decision.fallback for decision in decisions} == {""}
    assert {decision.owner for decision in decisions} == {cluster_state.owner(routing_key(group, "key"))}
    assert all(decision.retry_after == 0 for decision in decisions[:3])
    assert all(0 < decision.retry_after <= 2 * 86400 for decision in decisions[3:])
    assert all(0 < decision.reset_after <= 2 * 86400 for decision in decisions)
    assert hit(limit, group, "other key").allowed
    assert hit(limit, group + "other", "key").allowed


@pytest.mark.timing
@pytest.mark.usefixtures("cluster")
def test_a_hit_passes_again_when_retry_after_is_over(hit: Hit, group: str) -> None:
    limit = Limit.parse("1/s")
    decisions: list[Decision] = []

    def is_denied() -> bool:
        decisions.append(hit(limit, group, "key"))
        return not decisions[-1].allowed

    start = time.monotonic()
    wait_until(is_denied, 60, "two hits within a second")
    retry_after = decisions[-1].retry_after
    wait_until(lambda: hit(limit, group, "key").allowed, 60, "allowed again")
    assert 0 < retry_after <= 1
    check_seconds(time.monotonic() - start, below=1.3, at_least=retry_after)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_peek_returns_the_decision_of_a_hit_without_counting(
    functions: LimitFunctions, group: str, algorithm: str
) -> None:
    limit = Limit.parse(["2/h", "5/d"], algorithm)
    start = time.monotonic()
    looks = [(functions.peek(limit, group, "key"), functions.hit(limit, group, "key")) for _ in range(4)]
    assert [(look.allowed, look.remaining) for look, _ in looks] == [(True, 2), (True, 1), (False, 0), (False, 0)]
    assert [hit.allowed for _, hit in looks] == [True, True, False, False]
    assert is_left(looks[3][0].retry_after, looks[2][1].retry_after, start)
    assert not functions.peek(limit, group, "key", 3).allowed
    assert functions.peek(limit, group, "other key", 2).remaining == 2
    assert looks[0][0].owner == cluster_state.owner(routing_key(group, "key"))


@pytest.mark.usefixtures("cluster")
def test_a_reset_forgets_the_hits_of_a_key(functions: LimitFunctions, group: str) -> None:
    limit, other = Limit.parse("1/d"), Limit.parse("2/d")
    for key in map(str, range(9)):  # of all owners
        assert [functions.hit(limit, group, key).allowed for _ in range(2)] == [True, False]
        functions.hit(other, group, key)
        assert functions.reset(limit, group, key) is True
        assert functions.hit(limit, group, key).allowed
        assert functions.peek(other, group, key).remaining == 1


@pytest.mark.usefixtures("cluster")
def test_reset_without_a_count_returns_false(functions: LimitFunctions, group: str) -> None:
    limit = Limit.parse(["5/d", "2/h"])
    for key in map(str, range(9)):  # of all owners
        functions.hit(limit, group, key)
        assert functions.reset(limit, group, f"{key} misspelled") is False
        assert functions.reset(limit, f"{group} misspelled", key) is False
        assert functions.reset(Limit.parse("5/h"), group, key) is False
        assert functions.reset(Limit.parse(["3/d", "2/h"]), group, key) is True
        assert functions.reset(limit, group, key) is True
        assert functions.reset(limit, group, key) is False


def test_reset_returns_none_if_the_owner_is_unreachable_and_resets_the_substitute(
    functions: LimitFunctions, group: str, dead_owner: str
) -> None:
    limit = Limit.parse("1/d")
    assert [functions.hit(limit, group, dead_owner).allowed for _ in range(2)] == [True, False]
    assert not functions.peek(limit, group, dead_owner).allowed
    assert functions.reset(limit, group, dead_owner) is None
    assert functions.peek(limit, group, dead_owner).allowed
    assert functions.hit(limit, group, dead_owner).fallback == "node"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.usefixtures("cluster")
def test_a_refund_takes_a_hit_back(functions: LimitFunctions, group: str, algorithm: str) -> None:
    limit = Limit.parse(["2/m", "5/h"], algorithm)
    decisions = [functions.hit(limit, group, "key", 2), functions.hit(limit, group, "key")]
    assert [decision.allowed for decision in decisions] == [True, False]
    assert functions.refund(decisions[0], limit, group, "key", 2)
    assert functions.hit(limit, group, "key").allowed
    assert not functions.refund(decisions[1], limit, group, "key")  # it wasn't counted


def test_a_refund_goes_where_the_hit_was_counted(functions: LimitFunctions, group: str, dead_owner: str) -> None:
    limit = Limit.parse("1/m")
    decision = functions.hit(limit, group, dead_owner)
    assert decision.fallback == "node"
    assert functions.refund(decision, limit, group, dead_owner)
    assert functions.hit(limit, group, dead_owner).allowed


@pytest.mark.usefixtures("cluster")
def test_a_denial_that_another_thread_gets_during_a_refund_is_not_used_after_it(
    functions: LimitFunctions, group: str
) -> None:
    limit, client = Limit.parse("1/m"), runtime.get_client()
    decision = functions.hit(limit, group, "key")
    refunding = inspect.unwrap(ratelimit.refund)(decision, limit, group, "key")
    command = refunding.send(next(refunding).run(client))
    assert not functions.hit(limit, group, "key").allowed
    with pytest.raises(StopIteration):
        refunding.send(command.run(client))
    assert functions.hit(limit, group, "key").allowed


@pytest.mark.usefixtures("nowhere")
def test_refund_of_a_hit_counted_by_this_process(functions: LimitFunctions, group: str) -> None:
    limit = Limit.parse("1/m")
    decision = functions.hit(limit, group, "key")
    assert decision.fallback == "process"
    assert functions.refund(decision, limit, group, "key")
    assert functions.hit(limit, group, "key").allowed
    uncounted = functions.hit(Limit.parse("1/m", on_unavailable="allow"), group, "key")
    assert not functions.refund(uncounted, limit, group, "key")


@pytest.mark.usefixtures("cluster")
def test_a_flood_on_a_denied_key_makes_no_round_trips(
    functions: LimitFunctions, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(denial_cache, "MAX_AGE", 60.0)  # however long a busy machine takes
    limit = Limit.parse("1/m")
    denied = [functions.hit(limit, group, "key") for _ in range(2)][1]
    requests = watch_requests(monkeypatch)
    flood = [functions.hit(limit, group, "key") for _ in range(20)]
    assert not requests
    assert all((one.limit, one.period, one.owner, one.fallback) == (1, 60.0, denied.owner, "") for one in flood)
    assert 59 > flood[0].retry_after - 1 >= flood[-1].retry_after - 1 > 50
    assert all(not one.allowed and one.remaining == 0 for one in flood)
    functions.hit(limit, group, "key", fresh=True)
    functions.hit(limit, group, "key", dry=True)
    functions.peek(limit, group, "key")
    assert len(requests) == 3


@pytest.mark.usefixtures("cluster")
def test_the_owner_learns_of_hits_that_were_denied_from_memory(
    functions: LimitFunctions, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(denial_cache, "MAX_AGE", 60.0)  # however long a busy machine takes
    limit = Limit.parse("1/m")
    for _ in range(6):
        functions.hit(limit, group, "key")
    requests = watch_requests(monkeypatch)
    for _ in range(2):
        functions.hit(limit, group, "key", fresh=True)
    assert [request.denied_locally for request in requests if isinstance(request, wire.Hit)] == [4, 0]


@pytest.mark.usefixtures("cluster")
@pytest.mark.timing
def test_cached_denial_ends_in_time(functions: LimitFunctions, group: str) -> None:
    limit = Limit.parse("1/s")
    functions.hit(limit, group, "key")
    start = time.monotonic()
    wait_until(lambda: functions.hit(limit, group, "key").allowed, MAX_AGE + 5, "allowed again")
    check_seconds(time.monotonic() - start, below=1.5)


@pytest.mark.usefixtures("cluster")
def test_cached_denial_does_not_cover_cheaper_hits_and_other_limits(functions: LimitFunctions, group: str) -> None:
    limit = Limit.parse("3/m")
    assert not functions.hit(limit, group, "key", 4).allowed
    assert not functions.hit(limit, group, "key", 4).allowed
    assert functions.hit(limit, group, "key", 3).allowed
    assert functions.hit(Limit.parse("4/m"), group, "key", 4).allowed


@pytest.mark.usefixtures("nowhere")
def test_denial_by_policy_is_not_cached(functions: LimitFunctions, group: str) -> None:
    limit = Limit.parse("1/m", on_unavailable="deny")
    assert [functions.hit(limit, group, "key").fallback for _ in range(3)] == ["deny"] * 3


def test_cached_denials_are_reported_to_this_hosts_node(
    cluster: LocalCluster, functions: LimitFunctions, group: str
) -> None:
    def told() -> Any:
        status = cluster.status("alpha")
        assert status is not None
        return status.stats.tally

    before, limit = told(), Limit.parse("1/m")
    for _ in range(5):
        functions.hit(limit, group, "key")

    def arrived() -> bool:
        functions.hit(limit, group, "another key")  # a process tells when it asks for the view, once a second
        return bool(told().remembered >= before.remembered + 3)

    wait_until(arrived, 60, "alpha is told")


@pytest.mark.usefixtures("nowhere")
def test_process_without_nodes_peeks_and_resets_its_own_counters(functions: LimitFunctions, group: str) -> None:
    limit = Limit.parse("1/d")
    looks = [functions.peek(limit, group, "key").allowed, functions.hit(limit, group, "key").allowed]
    assert [*looks, functions.peek(limit, group, "key").allowed] == [True, True, False]
    assert functions.reset(limit, group, "key") is None
    assert functions.peek(limit, group, "key").fallback == "process"
    assert functions.peek(limit, group, "key").allowed


@pytest.mark.usefixtures("cluster")
def test_blocking_and_asyncio_functions_count_in_the_same_place(group: str) -> None:
    limit = Limit.parse("2/d")
    assert ratelimit.hit(limit, group, "key").remaining == 1
    assert asyncio.run(ratelimit.ahit(limit, group, "key")).remaining == 0
    assert not ratelimit.hit(limit, group, "key").allowed


@pytest.mark.usefixtures("cluster")
def test_a_hit_counts_against_all_rates_or_none(hit: Hit, group: str) -> None:
    limit = Limit.parse(["2/h", "5/d"])
    assert [hit(limit, group, "key").allowed for _ in range(4)] == [True, True, False, False]
    assert hit(Limit.parse("5/d"), group, "key", 0).remaining == 3
    assert hit(Limit.parse("2/h"), group, "key", 0).remaining == 0


@pytest.mark.usefixtures("cluster")
def test_the_decision_is_that_of_the_rate_with_the_least_left_or_the_longest_denial(hit: Hit, group: str) -> None:
    limit = Limit.parse(["3/h", "2/d"])
    allowed = hit(limit, group, "key")
    assert (allowed.limit, allowed.period, allowed.remaining) == (2, 86400, 1)
    hit(limit, group, "key")
    denied = hit(limit, group, "key")
    assert (denied.allowed, denied.limit, denied.period) == (False, 2, 86400)
    same_number = Limit.parse(["2/s", "2/d"])
    hit(same_number, group, "same", 2)
    denied = hit(same_number, group, "same")
    assert denied.period == 86400
    assert denied.retry_after == pytest.approx(86400, abs=10)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_hit_may_cost_more_than_one(hit: Hit, group: str, algorithm: str) -> None:
    limit = Limit.parse("10/d", algorithm)
    assert hit(limit, group, "key", 7).remaining == 3
    denied = hit(limit, group, "key", cost=4)
    assert (denied.allowed, denied.remaining) == (False, 3)
    assert hit(limit, group, "key", 3).remaining == 0
    assert not hit(limit, group, "fresh", 11).allowed


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_hit_of_cost_zero_is_not_counted(hit: Hit, group: str, algorithm: str) -> None:
    limit = Limit.parse("2/d", algorithm)
    for _ in range(3):
        looked = hit(limit, group, "key", 0)
        assert (looked.allowed, looked.remaining) == (True, 2)
    hit(limit, group, "key", 2)
    assert hit(limit, group, "key", 0).remaining == 0


@pytest.mark.usefixtures("cluster")
def test_a_limit_of_zero_blocks_all(hit: Hit, group: str) -> None:
    decision = hit(Limit.parse("0/s"), group, "key")
    assert (decision.allowed, decision.remaining, decision.retry_after) == (False, 0, 1.0)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("cost", [-1, 1.5, "1", None, True, MAX_COST + 1])
def test_a_wrong_cost_is_refused_before_it_is_sent(
    hit: Hit, group: str, cost: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = watch_requests(monkeypatch)
    with pytest.raises(ValueError, match=rf"an integer from 0 to {MAX_COST}, not"):
        hit(Limit.parse("1/s"), group, "key", cost)
    assert requests == []
    assert hit(Limit.parse("1/s"), group, "key", MAX_COST).fallback == ""


@pytest.mark.usefixtures("cluster")
def test_a_hit_is_one_request_however_many_rates(hit: Hit, group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = Limit.parse([f"100/{seconds}s" for seconds in range(1, 17)])
    requests = watch_requests(monkeypatch)
    for _ in range(5):
        hit(limit, group, "key")
    assert [type(request) for request in requests] == [wire.Hit] * 5


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("key", ["", "\0", "\ud800", "ø" * 5000, "k" * 100_000])
def test_any_text_is_a_key(hit: Hit, group: str, key: str) -> None:
    limit = Limit.parse("1/d")
    assert hit(limit, group, key).allowed
    assert not hit(limit, group, key).allowed
    assert hit(limit, group, key + "x").allowed


# -- exact under concurrency ------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_exactly_the_limit_passes_for_64_concurrent_clients_of_three_nodes(
    cluster: LocalCluster, group: str, algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialer = Dialer(runtime.get_settings().link_keys, 30)
    clients = [Client(Routing(UnixAddress(str(cluster.socket(cluster.names[n % 3])))), dialer) for n in range(64)]
    mine = threading.local()
    limit, start = Limit.parse("100/d", algorithm), threading.Barrier(64, timeout=60)

    def ask(client: Client) -> int:
        mine.client = client
        start.wait(60)
        return sum(ratelimit.hit(limit, group, "key").allowed for _ in range(5))

    with monkeypatch.context() as patch, ThreadPoolExecutor(64) as threads:
        patch.setattr(runtime, "get_client", lambda: mine.client)
        allowed = list(threads.map(ask, clients))
    for client in clients:
        client.close()
    assert sum(allowed) == 100


SCRIPT = """
import asyncio, json, sys
from concurrent.futures import ThreadPoolExecutor
import django
django.setup()
from django_clusterstate.ratelimit import ALGORITHMS, Limit, ahit, hit

async def tasks(limit, key):
    return await asyncio.gather(*(ahit(limit, sys.argv[1], key) for _ in range(40)))

with ThreadPoolExecutor(16) as threads:
    said = {}
    for name in ALGORITHMS:
        limit = Limit.parse("100/d", name)
        decisions = list(threads.map(lambda _: hit(limit, sys.argv[1], name), range(160)))
        decisions += asyncio.run(tasks(limit, name))
        said[name] = [sum(d.allowed for d in decisions), sum(bool(d.fallback) for d in decisions)]
print(json.dumps(said))
"""


def test_exactly_the_limit_passes_for_three_processes_of_16_threads_and_40_tasks(
    cluster: LocalCluster, group: str
) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, group],
            env={**cluster.env(name), "DJANGO_SETTINGS_MODULE": "tests.settings", "CLUSTERSTATE_DEADLINE": "30"},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in cluster.names
    ]
    said = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
    for name in ALGORITHMS:
        allowed, fallbacks = (sum(process[name][place] for process in said) for place in (0, 1))
        assert (allowed, fallbacks) == (100, 0)


# -- the key that is counted ------------------------------------------------------------------------------------

TEXT = st.text() | st.text(alphabet="0123456789:\0a") | st.text(alphabet="ø1:", min_size=500, max_size=600)


@given(TEXT, TEXT, TEXT, TEXT)
def test_no_two_pairs_of_group_and_key_are_counted_as_one(group1: str, key1: str, group2: str, key2: str) -> None:
    assert (routing_key(group1, key1) == routing_key(group2, key2)) == ((group1, key1) == (group2, key2))
    assert len(routing_key(group1, key1)) <= wire.MAX_KEY_BYTES


@given(TEXT, st.integers(0, 10), st.integers(0, 10))
def test_where_the_group_ends_makes_a_difference(text: str, cut1: int, cut2: int) -> None:
    pair1, pair2 = (text[:cut1], text[cut1:]), (text[:cut2], text[cut2:])
    assert (routing_key(*pair1) == routing_key(*pair2)) == (pair1 == pair2)


@given(TEXT | st.text(st.characters(codec=None)), TEXT | st.text(st.characters(codec=None)))
def test_routing_key_is_split_into_what_it_was_made_of_unless_it_is_hashed(group: str, key: str) -> None:
    whole = f"\0{len(group)}:{group}{key}".encode(errors="surrogatepass")
    hashed = len(whole) > wire.MAX_KEY_BYTES
    assert split_key(routing_key(group, key)) == (None if hashed else (group, key))


@given(st.binary() | TEXT.map(str.encode) | st.from_regex(rb"\0[0-9-]{0,3}:?.{0,4}", fullmatch=True))
def test_only_a_routing_key_is_split(key: bytes) -> None:
    pair = split_key(key)
    assert pair is None or routing_key(*pair) == key


@pytest.mark.parametrize("key", [b"", b"\0", b"\0:", b"1:ab", b"\x0001:ab", b"\0+1:ab", b"\x003:ab", b"\x001:\xff"])
def test_only_what_routing_key_makes_is_split(key: bytes) -> None:
    assert split_key(key) is None


# -- when the owner doesn't answer ------------------------------------------------------------------------------


def test_this_hosts_node_counts_for_an_owner_that_doesnt_answer(hit: Hit, group: str, dead_owner: str) -> None:
    limit = Limit.parse("3/d", on_unavailable="local")
    decisions = [hit(limit, group, dead_owner) for _ in range(5)]
    assert [decision.allowed for decision in decisions] == [True] * 3 + [False] * 2
    assert {(decision.fallback, decision.owner) for decision in decisions} == {("node", "alpha")}


def test_this_hosts_node_counts_also_when_it_becomes_the_owner_meanwhile(
    hit: Hit, group: str, dead_owner: str, cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread, or another task, learns of the next owner while this one waits for the dead owner."""
    status = cluster.status("alpha")
    assert status is not None
    alone = View.of([status.identity])
    fail = Target.failed

    def learn_and_fail(target: Target, now: float, why: str = "") -> bool:
        if target.name == DEAD:
            _fix_view(monkeypatch, alone, "alpha")
        return fail(target, now, why)

    monkeypatch.setattr(Target, "failed", learn_and_fail)
    decision = hit(Limit.parse("3/d", on_unavailable="local"), group, dead_owner)
    assert (decision.fallback, decision.owner) == ("node", "alpha")


@pytest.mark.parametrize(("policy", "allowed"), [("allow", True), ("deny", False)])
def test_the_policy_answers_for_an_owner_that_doesnt_answer(
    hit: Hit, group: str, dead_owner: str, policy: str, allowed: bool
) -> None:
    for _ in range(5):
        decision = hit(Limit.parse(["3/h", "9/d"], on_unavailable=policy), group, dead_owner)
        assert (decision.allowed, decision.fallback, decision.owner) == (allowed, policy, "")
        assert (decision.limit, decision.period, decision.remaining) == (3, 3600, 3 if allowed else 0)
        assert decision.retry_after == (0 if allowed else 1)


def test_the_setting_at_that_moment_is_the_policy_of_a_limit_without_one(
    hit: Hit, group: str, dead_owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = Limit.parse("1000000/d")
    for policy, fallback in (("local", "node"), ("allow", "allow"), ("deny", "deny")):
        settings = replace(runtime.get_settings(), on_unavailable=policy)
        with monkeypatch.context() as patch:
            patch.setattr(runtime, "get_settings", lambda settings=settings: settings)
            assert hit(limit, group, dead_owner).fallback == fallback


def test_wrong_reply_of_the_owner_counts_as_none(
    hit: Hit, group: str, dead_owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply = wire.DecisionsReply(0, [])

    async def areply(*args: object) -> wire.Reply:
        return reply

    monkeypatch.setattr(Client, "call_node", lambda *args: reply)
    monkeypatch.setattr(AsyncClient, "call_node", areply)
    assert hit(Limit.parse("3/d"), group, dead_owner).fallback == "process"


def test_a_local_node_that_hangs_is_waited_for_once(hit: Hit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "hangs.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        monkeypatch.setenv("CLUSTERSTATE_SOCKET", str(path))
        monkeypatch.setenv("CLUSTERSTATE_DEADLINE", "0.05")
        runtime.forget()
        _fix_view(monkeypatch, View.of([Identity("here", b"\0" * 16, "127.0.0.1:1")]), "here")
        assert hit(Limit.parse("3/d"), "group", "key").fallback == "process"
        listener.setblocking(False)
        listener.accept()[0].close()
        with pytest.raises(BlockingIOError):
            listener.accept()
    monkeypatch.undo()
    runtime.forget()


# -- when no node answers ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_without_a_node_this_process_counts(hit: Hit, algorithm: str) -> None:
    limit = Limit.parse(["3/h", "5/d"], algorithm)
    decisions = [hit(limit, "group", "key") for _ in range(5)]
    assert [decision.allowed for decision in decisions] == [True] * 3 + [False] * 2
    assert {(decision.fallback, decision.owner) for decision in decisions} == {("process", "")}
    assert hit(limit, "group", "other").allowed
    assert hit(limit, "group", "other", 0).remaining == 2


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize(("policy", "allowed"), [("allow", True), ("deny", False)])
def test_without_a_node_the_policy_answers(hit: Hit, policy: str, allowed: bool) -> None:
    decision = hit(Limit.parse("3/h", on_unavailable=policy), "group", "key", 5)
    assert (decision.allowed, decision.fallback) == (allowed, policy)


@pytest.mark.usefixtures("nowhere")
def test_unknown_policy_denies(hit: Hit) -> None:
    limit = Limit(Limit.parse("3/h").rules, "Deny")
    decision = hit(limit, "group", "key")
    assert (decision.allowed, decision.fallback) == (False, "deny")


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize("policy", POLICIES)
def test_a_limit_of_zero_blocks_all_without_a_node_as_well(hit: Hit, policy: str) -> None:
    assert not hit(Limit.parse(["0/s", "3/m"], on_unavailable=policy), "group", "key").allowed


@pytest.mark.usefixtures("nowhere")
@pytest.mark.timing
def test_an_outage_costs_no_deadline_and_one_line_in_the_log(hit: Hit, caplog: pytest.LogCaptureFixture) -> None:
    limit, took = Limit.parse("3/h"), []
    with caplog.at_level(logging.DEBUG, "django_clusterstate"):
        for _ in range(50):
            start = time.perf_counter()
            hit(limit, "group", "key")
            took.append(time.perf_counter() - start)
    check_seconds(median(took), below=0.05)
    lines = [record for record in caplog.records if record.name.startswith("django_clusterstate")]
    assert [record.levelname for record in lines] == ["DEBUG", "DEBUG", "WARNING"]


@pytest.mark.usefixtures("nowhere")
def test_counters_of_this_process_are_reset_with_its_settings(hit: Hit) -> None:
    limit = Limit.parse("1/d")
    for _ in range(2):
        with override_settings(CLUSTERSTATE={}):
            assert [hit(limit, "group", "key").allowed for _ in range(2)] == [True, False]


@pytest.mark.usefixtures("cluster")
def test_a_denial_is_forgotten_with_the_settings(hit: Hit, group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = Limit.parse("1/d")
    assert [hit(limit, group, "key").allowed for _ in range(2)] == [True, False]
    with monkeypatch.context() as patch:
        patch.delenv("CLUSTERSTATE_SOCKET")
        with override_settings(CLUSTERSTATE={"SOCKET": "/nowhere/node.sock"}):
            decision = hit(limit, group, "key")
    assert (decision.allowed, decision.fallback) == (True, "process")


def test_hit_with_a_lost_reply_is_counted_once_for_each_node_that_got_it(
    hit: Hit, cluster: LocalCluster, group: str
) -> None:
    limit = Limit.parse("10/d")
    key = next(key for key in map(str, range(100)) if cluster_state.owner(routing_key(group, key)) == "beta")
    assert hit(limit, group, key).owner == "beta"
    with Proxy(cluster.ports["beta"]) as proxy:
        runtime.get_client().close()
        for client in (runtime.get_client(), runtime.get_async_client()):
            table, by_proxy = client.routing.table, Target("beta", TcpAddress("127.0.0.1", proxy.port))
            client.routing.table = RoutingTable(table.view, table.local_name, {**table.targets, "beta": by_proxy})
        assert hit(limit, group, key).owner == "beta"
        proxy.cut = 1
        lost = hit(limit, group, key)
        assert proxy.cut == 0
        assert (lost.fallback, lost.remaining) == ("node", 10 - 4)  # the next node has forwarded it to the owner
    runtime.forget()
    assert ratelimit.peek(limit, group, key).remaining == 10 - 4


@pytest.mark.usefixtures("nowhere")
def test_counters_of_this_process_are_exact_for_its_threads(hit: Hit) -> None:
    limit = Limit.parse("100/d")
    with ThreadPoolExecutor(16) as threads:
        decisions = list(threads.map(lambda _: ratelimit.hit(limit, "group", "key"), range(320)))
    assert sum(decision.allowed for decision in decisions) == 100


@pytest.mark.usefixtures("nowhere")
def test_counters_of_this_process_are_bounded(hit: Hit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("django_clusterstate.ratelimit.fallback.PROCESS_MAX_BYTES", 100_000)
    limits = ProcessLimiter()
    monkeypatch.setattr(hits, "_process_limiter", lambda: limits)
    limit = Limit.parse("3/d")
    for number in range(1000):
        assert hit(limit, "group", str(number)).allowed
    assert limits._store.bytes <= 100_000
    assert runtime.get_stats().process_evictions == limits._store.evictions > 0


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_child_counts_by_itself_though_a_thread_of_its_parent_was_counting(in_child: InChild) -> None:
    limits, held, done = ProcessLimiter(), threading.Event(), threading.Event()
    request = wire.Hit(b"k", list(Limit.parse("2/d").rules), 1)

    def hold() -> None:
        with limits._lock:
            held.set()
            done.wait(60)

    with ThreadPoolExecutor(1) as threads:
        threads.submit(hold)
        assert held.wait(60)
        child = in_child(lambda: [limits.decide(request)[0].allowed for _ in range(3)] == [True, True, False])
        try:
            assert child()
        finally:
            done.set()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_child_does_not_report_cached_denials_of_its_parent(
    cluster: LocalCluster, group: str, in_child: InChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(denial_cache, "MAX_AGE", 60.0)  # however long a busy machine takes
    limit = Limit.parse("1/d")
    for _ in range(4):
        ratelimit.hit(limit, group, "key")

    def child() -> bool:
        return hits._denials().take_count(routing_key(group, "key")) == 0

    assert in_child(child)()
    assert hits._denials().take_count(routing_key(group, "key")) == 2
