"""What is measured. Values are strings of 100 characters, keys as Django makes them, limits so large that all pass."""

import importlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from django.core.cache import caches
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory

from django_clusterstate import cluster, ratelimit
from django_clusterstate.cache import ClusterCache
from django_clusterstate.core.rendezvous_hashing import Rendezvous
from django_clusterstate.decorators import cluster_ratelimit

from .measure import Case
from .peer import PING, Pinger
from .servers import HOST, NODES, Servers
from .settings import DENYING, RATE, RATES, installed

VALUE = "v" * 100
KEYS = 64  # of each kind, used in turn
MANY = 100
MISS, ABSENT, MISSED_FOR = ", a miss", 5000, 30  # a run of that many misses takes longer than these seconds

LOCAL, REMOTE = "this, owner on this host (unix)", "this, owner on another node (TCP)"
THREE_NODES = "this, owners on three nodes"
REDIS, REDIS_HIREDIS, REDIS_UNIX = "Redis (TCP)", "Redis with hiredis (TCP)", "Redis (unix)"
MEMCACHED, MEMCACHED_UNIX = "Memcached (TCP)", "Memcached (unix)"
LOCMEM = "LocMemCache (this process)"
DJANGO_RATELIMIT, LIMITS = "django-ratelimit on Redis (TCP)", "limits on Redis with hiredis (TCP)"
PING_UNIX, PING_TCP = "bare ping-pong (unix)", "bare ping-pong (TCP)"

PEERS = {
    REDIS: "redis",
    REDIS_HIREDIS: "redis_hiredis",
    REDIS_UNIX: "redis_unix",
    MEMCACHED: "memcached",
    MEMCACHED_UNIX: "memcached_unix",
    LOCMEM: "locmem",
}

FIXED, SLIDING, DECORATED = "limit, fixed window", "limit, sliding window", "limit, decorated view"
SEVERAL, DENIED = "limit, two rates at once", "limit, a key that was just denied"
AFIXED, ADENIED = "ahit, fixed window", "ahit, a key that was just denied"
OWNER = "owner lookup"
LOOKUPS = 1000  # in one measured call: a single one is too short for the clock


def nodes(count: int) -> str:
    return f"{count:,} nodes"


def all_cases(servers: Servers, *, quick: bool) -> list[Case]:
    return [
        *_floor(servers),
        *_cache(servers, asynchronous=False),
        *_limits(servers, asynchronous=False),
        *_decorated(servers),
        *_cache(servers, asynchronous=True),
        *_limits(servers, asynchronous=True),
        *_owners(1 if quick else 10),
    ]


def _floor(servers: Servers) -> list[Case]:
    unix, tcp = Pinger(servers.peer_socket), Pinger((HOST, servers.peer_port))
    return [
        Case("floor", PING_UNIX, unix.ping, [PING], PING.__eq__),
        Case("floor", PING_TCP, tcp.ping, [PING], PING.__eq__),
    ]


# -- caches -------------------------------------------------------------------------------------------------------


def _cache(servers: Servers, *, asynchronous: bool) -> list[Case]:
    ours = caches["default"]
    assert isinstance(ours, ClusterCache)
    texts, counts = _split("text:{}".format, ours.routing_key), _split("count:{}".format, ours.routing_key)
    _, absent = _split(f"absent:{asynchronous}:{{}}".format, ours.routing_key, ABSENT)
    many = [[f"many:{n}:{m}" for m in range(MANY)] for n in range(8)]
    rows = [(LOCAL, "default", texts[0], counts[0]), (REMOTE, "default", texts[1], counts[1])]
    rows += [(who, alias, texts[1], counts[1]) for who, alias in PEERS.items()]
    cases = []
    for who, alias, text_keys, count_keys in rows:
        missing = _missing(servers, alias)
        if not missing:
            caches[alias].set_many(dict.fromkeys([*text_keys, *(key for keys in many for key in keys)], VALUE), None)
            caches[alias].set_many(dict.fromkeys(count_keys, 0), None)
        kinds: list[tuple[str, str, Sequence[Any], Callable[[Any], bool]]] = [
            ("get", who, text_keys, VALUE.__eq__),
            ("set", who, text_keys, lambda result: result is None),
            ("incr", who, count_keys, lambda count: count > 0),
            ("get_or_set", who, text_keys, VALUE.__eq__),
        ]
        if who != LOCAL:
            # Some rows have one server, and what one has stored the other would find.
            mine = absent if who == REMOTE else [f"{alias}:{key}" for key in absent]
            kinds.append((f"get_or_set{MISS}", who, mine, VALUE.__eq__))
            kinds.append(("get_many", THREE_NODES if who == REMOTE else who, many, lambda found: len(found) == MANY))
        for name, whose, arguments, correct in kinds:
            method = f"a{name}" if asynchronous else name
            group = f"cache.{method}({MANY})" if name == "get_many" else f"cache.{method}"
            if missing:  # without its library a cache can't even be made
                cases.append(Case(group, whose, missing=missing))
            else:
                cases.append(Case(group, whose, _caller(alias, method), arguments, correct, asynchronous))
    return cases


def _caller(alias: str, name: str) -> Callable[[Any], Any]:
    method: Callable[..., Any] = getattr(caches[alias], name.removesuffix(MISS))
    if name.endswith(MISS):
        return lambda key: method(key, lambda: VALUE, MISSED_FOR)
    return (lambda key: method(key, VALUE)) if name.endswith("set") else method


def _missing(servers: Servers, alias: str) -> str:
    """Why a cache can't be measured; empty if it can."""
    program, _, detail = alias.partition("_")
    if program == "redis":
        if not servers.redis:
            return "no redis-server"
        wanted = ["redis", "hiredis"] if detail == "hiredis" else ["redis"]
    elif program == "memcached":
        if not servers.memcached:
            return "no memcached"
        wanted = ["pymemcache"]
    else:
        wanted = []
    return next((f"no {module}" for module in wanted if not installed(module)), "")


def _split(
    make: Callable[[int], str], routing_key: Callable[[str], bytes], most: int = KEYS
) -> tuple[list[str], list[str]]:
    """Keys that this host's node owns, and keys that one other owns: peers too are one server each."""
    keys: dict[str, list[str]] = {NODES[0]: [], NODES[1]: [], NODES[2]: []}
    for number in range(20 * most):
        key = make(number)
        keys[cluster.owner(routing_key(key))].append(key)
    return keys[NODES[0]][:most], keys[NODES[1]][:most]


# -- limits -------------------------------------------------------------------------------------------------------


def _limits(servers: Servers, *, asynchronous: bool) -> list[Case]:
    cases = []
    for group, rates, algorithm in (
        *((f"limit, {name.replace('_', ' ')}", [RATE], name) for name in ratelimit.ALGORITHMS),
        (SEVERAL, RATES, "fixed_window"),
        (DENIED, [DENYING], "fixed_window"),
    ):
        passes = group != DENIED
        cases += _ours(group, rates, algorithm, passes=passes, asynchronous=asynchronous)
        if algorithm == "fixed_window" and not asynchronous:
            cases.append(_django_ratelimit(servers, group, rates, passes=passes))
        if algorithm != "token_bucket":  # it has none
            cases.append(_limits_on_redis(servers, group, rates, passes=passes, asynchronous=asynchronous))
    return cases


def _group(name: str, *, asynchronous: bool) -> str:
    return name.replace("limit,", "ahit,") if asynchronous else name


def _ours(group: str, rates: Sequence[str], algorithm: str, *, passes: bool, asynchronous: bool) -> list[Case]:
    limit, ask = ratelimit.Limit.parse(rates, algorithm), ratelimit.ahit if asynchronous else ratelimit.hit
    here, elsewhere = _split("user:{}".format, _bench_key)
    if not passes:
        here, elsewhere = here[:1], elsewhere[:1]  # a flood comes from one client
        for key in (*here, *elsewhere):
            ratelimit.hit(limit, "bench", key)
    name = _group(group, asynchronous=asynchronous)
    return [
        Case(name, who, lambda key: ask(limit, "bench", key), keys, _by_owner(passes=passes), asynchronous)
        for who, keys in ((LOCAL, here), (REMOTE, elsewhere))
    ]


def _by_owner(*, passes: bool) -> Callable[[ratelimit.Decision], bool]:
    return lambda decision: decision.allowed == passes and not decision.fallback


def _bench_key(key: str) -> bytes:
    return ratelimit.routing_key("bench", key)


def _django_ratelimit(servers: Servers, group: str, rates: Sequence[str], *, passes: bool) -> Case:
    missing = _missing(servers, "redis") or ("" if installed("django_ratelimit") else "no django_ratelimit")
    if missing:
        return Case(group, DJANGO_RATELIMIT, missing=missing)
    is_ratelimited = importlib.import_module("django_ratelimit.core").is_ratelimited
    request = RequestFactory().get("/")

    def ask(key: str) -> bool:
        """Several rates are several calls, as its decorators stack."""
        calls = (
            is_ratelimited(request, group="bench", key=lambda *_: key, rate=rate, increment=True) for rate in rates
        )
        return any(calls)

    keys = [f"user:{number}" for number in range(KEYS)]
    for key in keys:
        ask(key)  # the first hit of a key is another case: it takes one exchange with Redis, the others take three
    return Case(group, DJANGO_RATELIMIT, ask, keys, (not passes).__eq__)


def _limits_on_redis(servers: Servers, group: str, rates: Sequence[str], *, passes: bool, asynchronous: bool) -> Case:
    name = _group(group, asynchronous=asynchronous)
    missing = _missing(servers, "redis_hiredis") or ("" if installed("limits") else "no limits")
    if missing:
        return Case(name, LIMITS, missing=missing)
    limits = importlib.import_module("limits")
    items = [limits.parse(rate.replace("/", " per ").replace("h", "hour").replace("d", "day")) for rate in rates]
    kind = "SlidingWindowCounterRateLimiter" if group == SLIDING else "FixedWindowRateLimiter"
    url, keys = f"redis://{HOST}:{servers.redis_port}", [f"user:{n}" for n in range(KEYS)]
    strategy = getattr(limits.strategies, kind)(limits.storage.storage_from_string(url))

    def ask(key: str) -> bool:
        return all(strategy.hit(item, group, key) for item in items)

    for key in keys:
        ask(key)
    if not asynchronous:
        return Case(name, LIMITS, ask, keys, passes.__eq__)
    aio = importlib.import_module("limits.aio")
    storage = limits.storage.storage_from_string(f"async+{url}", implementation="redispy")
    astrategy = getattr(aio.strategies, kind)(storage)

    async def aask(key: str) -> bool:
        return all([await astrategy.hit(item, group, key) for item in items])

    return Case(name, LIMITS, aask, keys, passes.__eq__, asynchronous=True)


def _decorated(servers: Servers) -> list[Case]:
    """A view that does nothing, limited by its client's address: all that a request pays."""

    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    _, addresses = _split(lambda n: f"10.0.{n // 200}.{n % 200}", _bench_key)
    factory = RequestFactory()
    requests = [factory.get("/", REMOTE_ADDR=address) for address in addresses]
    ours = cluster_ratelimit(group="bench", key="ip", rate=RATE)(view)
    passed: Callable[[HttpResponse], bool] = lambda response: response.status_code == 200  # noqa: E731
    cases = [Case(DECORATED, REMOTE, ours, requests, passed)]
    missing = _django_ratelimit(servers, DECORATED, [RATE], passes=True).missing
    if missing:
        return [*cases, Case(DECORATED, DJANGO_RATELIMIT, missing=missing)]
    theirs = importlib.import_module("django_ratelimit.decorators").ratelimit(group="bench", key="ip", rate=RATE)(view)
    return [*cases, Case(DECORATED, DJANGO_RATELIMIT, theirs, requests, passed)]


# -- owners -------------------------------------------------------------------------------------------------------


def _owners(spread: int) -> list[Case]:
    """Each call looks up LOOKUPS keys, of `spread` times as many in all, whose slots are warm."""
    cases = []
    blocks = [[f"default\0:1:key:{block}:{n}".encode() for n in range(LOOKUPS)] for block in range(spread)]
    for count in (10, 100, 1000):
        owner = Rendezvous({f"node-{n}": 1.0 for n in range(count)}).owner
        for key in itertools.chain.from_iterable(blocks):
            owner(key)
        cases.append(Case(OWNER, nodes(count), _looker(owner), blocks, bool, per_call=LOOKUPS))
    return cases


def _looker(owner: Callable[[bytes], str | None]) -> Callable[[list[bytes]], str | None]:
    def look(keys: list[bytes]) -> str | None:
        for key in keys:
            name = owner(key)
        return name

    return look
