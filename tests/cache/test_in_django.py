"""The cache where Django uses it: sessions, `cache_page`, the template tag, asynchronous views. With real nodes."""

import asyncio
import json
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth import aget_user, get_user
from django.contrib.auth.models import User
from django.contrib.sessions.backends.base import SessionBase
from django.core.cache import cache as default_cache
from django.core.cache import caches
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template import Context, Template
from django.test import AsyncClient, Client, RequestFactory
from django.urls import path
from django.views.decorators.cache import cache_page

from django_clusterstate.cache.operations import CacheOperations
from testproject.processes import wait_until
from tests.cache_variants import CacheVariants
from tests.timing import check_seconds

ENGINES = ["cache", "cached_db"]
Call = Callable[..., Any]


def visit(request: HttpRequest) -> JsonResponse:
    request.session["visits"] = request.session.get("visits", 0) + 1
    return JsonResponse({"visits": request.session["visits"], "user": get_user(request).get_username()})


async def avisit(request: HttpRequest) -> JsonResponse:
    visits = await request.session.aget("visits", 0) + 1
    await request.session.aset("visits", visits)
    return JsonResponse({"visits": visits, "user": (await aget_user(request)).get_username()})


urlpatterns = [path("visit/", visit), path("avisit/", avisit)]


# -- sessions ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=ENGINES)
def store(request: pytest.FixtureRequest, settings: Any, variants: CacheVariants, db: None) -> type[SessionBase]:
    settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{request.param}"
    found: type[SessionBase] = import_module(settings.SESSION_ENGINE).SessionStore
    return found


@pytest.fixture(params=["raise", "ignore"])
def too_big(request: pytest.FixtureRequest, settings: Any, store: type[SessionBase]) -> str:
    """The policy of the cache that holds the sessions."""
    options = {"OPTIONS": {"VALUE_TOO_BIG": request.param}}
    settings.CACHES = {**settings.CACHES, "default": {**settings.CACHES["default"], **options}}
    policy: str = request.param
    return policy


@pytest.fixture
def call(variants: CacheVariants, store: type[SessionBase], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Calls a method of a session by its blocking name, or its asynchronous twin."""
    if variants.runner is not None and "cached_db" in store.__module__:
        monkeypatch.undo()  # Django's database access is in threads, whatever the cache does

    def call(session: SessionBase, name: str, *args: Any) -> Any:
        if variants.runner is None:
            method = session.__setitem__ if name == "set" else getattr(session, name)
            return method(*args)
        method = getattr(session, f"a{name}")
        # Its database work is done in this thread, on the test's connection.
        return async_to_sync(method)(*args) if "cached_db" in store.__module__ else variants.runner.run(method(*args))

    return call


def test_a_session_is_saved_and_loaded(store: type[SessionBase], call: Call) -> None:
    session = store()
    call(session, "set", "user", {"id": 7, "groups": ["a", "b"]})
    call(session, "save")
    again = store(session.session_key)
    assert call(again, "get", "user") == {"id": 7, "groups": ["a", "b"]}
    assert call(again, "exists", session.session_key) is True
    assert call(again, "has_key", "user") is True
    assert call(again, "pop", "user") == {"id": 7, "groups": ["a", "b"]}
    call(again, "save")
    assert call(store(session.session_key), "get", "user", "gone") == "gone"


def test_a_session_that_is_flushed_is_gone(store: type[SessionBase], call: Call) -> None:
    session = store()
    call(session, "set", "user", 7)
    call(session, "save")
    key = session.session_key
    call(session, "flush")
    assert call(store(), "exists", key) is False
    assert call(store(key), "get", "user") is None


def test_a_session_keeps_its_data_under_a_new_key(store: type[SessionBase], call: Call) -> None:
    session = store()
    call(session, "set", "user", 7)
    call(session, "save")
    old = session.session_key
    call(session, "cycle_key")
    assert session.session_key != old
    assert call(store(session.session_key), "get", "user") == 7
    assert call(store(), "exists", old) is False


def test_a_session_expires(store: type[SessionBase], call: Call) -> None:
    session = store()
    call(session, "set", "user", 7)
    call(session, "set_expiry", 60)
    call(session, "save")
    assert call(store(session.session_key), "get", "user") == 7
    call(session, "set_expiry", 1)
    call(session, "save")
    wait_until(lambda: call(store(session.session_key), "get", "user") is None, 60, "the session's end")


def test_sessions_are_read_from_the_cache_and_made_there_when_it_was_lost(
    variants: CacheVariants, store: type[SessionBase], call: Call
) -> None:
    session = store()
    call(session, "set", "user", 7)
    call(session, "save")
    session_key = store.cache_key_prefix + str(session.session_key)  # type: ignore[attr-defined]
    assert variants["default"].get(session_key) is not None
    variants["default"].clear()
    found = call(store(session.session_key), "get", "user")
    assert found == (7 if "cached_db" in store.__module__ else None)
    assert (variants["default"].get(session_key) is not None) is ("cached_db" in store.__module__)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("url", ["/visit/", "/avisit/"])
@pytest.mark.usefixtures("cluster", "db")
def test_a_visitor_stays_logged_in(settings: Any, engine: str, url: str) -> None:
    settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{engine}"
    settings.ROOT_URLCONF = __name__
    client = Client()
    client.force_login(User.objects.create_user("ada"))
    assert [client.get(url).json() for _ in range(3)] == [{"visits": n, "user": "ada"} for n in (1, 2, 3)]
    client.logout()
    assert client.get(url).json() == {"visits": 1, "user": ""}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.usefixtures("cluster", "db")
def test_a_visitor_stays_logged_in_under_asgi(settings: Any, engine: str) -> None:
    settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{engine}"
    settings.ROOT_URLCONF = __name__
    client = AsyncClient()
    client.force_login(User.objects.create_user("ada"))

    async def visits() -> list[Any]:
        return [(await client.get("/avisit/")).json() for _ in range(3)]

    assert async_to_sync(visits)() == [{"visits": n, "user": "ada"} for n in (1, 2, 3)]


@pytest.mark.usefixtures("nowhere", "db")
def test_without_a_node_sessions_of_cached_db_live_in_the_database(settings: Any) -> None:
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.cached_db"
    settings.ROOT_URLCONF = __name__
    client = Client()
    client.force_login(User.objects.create_user("ada"))
    assert [client.get("/visit/").json() for _ in range(2)] == [{"visits": n, "user": "ada"} for n in (1, 2)]


@pytest.mark.usefixtures("nowhere")
@pytest.mark.timing
def test_without_a_node_no_session_of_the_cache_can_be_begun_and_none_is_found() -> None:
    """Django's behavior, which the docs describe."""
    store = import_module("django.contrib.sessions.backends.cache").SessionStore
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="cache is unavailable"):
        store().create()
    check_seconds(time.monotonic() - start, below=10)
    assert store("a" * 32).get("user") is None


BIG = "x" * 2_000_000  # more than a cache value may have


def test_a_session_that_outgrows_the_cache_isnt_the_older_one_again(
    variants: CacheVariants, store: type[SessionBase], call: Call, too_big: str
) -> None:
    session = store()
    call(session, "set", "step", 1)
    call(session, "save")
    in_database = "cached_db" in store.__module__
    again = store(session.session_key)
    call(again, "set", "step", 2)
    call(again, "set", "text", BIG)
    with pytest.raises(ValueError, match="takes") if too_big == "raise" and not in_database else nullcontext():
        call(again, "save")
    assert variants["default"].get(store.cache_key_prefix + str(session.session_key)) is None  # type: ignore[attr-defined]
    # Django puts what comes from the database into the cache, and there it catches nothing.
    with pytest.raises(ValueError, match="takes") if too_big == "raise" and in_database else nullcontext():
        assert call(store(session.session_key), "get", "step") == (2 if in_database else None)


def test_a_new_session_that_is_too_big_for_the_cache_is_refused_at_once(
    store: type[SessionBase], call: Call, too_big: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[object] = []
    add = CacheOperations.add

    def counted(self: CacheOperations, key: bytes, *args: Any) -> Any:
        attempts.append(key)
        return add(self, key, *args)

    monkeypatch.setattr(CacheOperations, "add", counted)
    session = store()
    call(session, "set", "text", BIG)
    in_database = "cached_db" in store.__module__
    with nullcontext() if in_database else pytest.raises(ValueError, match="takes"):
        call(session, "save")
    assert len(attempts) == (0 if in_database else 1)  # not ten thousand, as for keys that are taken


# -- pages and fragments ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("variants")
def test_cache_page_serves_a_page_from_the_cache() -> None:
    calls = []

    @cache_page(60)
    def view(request: HttpRequest) -> HttpResponse:
        calls.append(request)
        response = HttpResponse(f"page {len(calls)}", headers={"X-Number": str(len(calls))})
        response.set_cookie("foo", "bar")
        return response

    first, second = view(RequestFactory().get("/page/")), view(RequestFactory().get("/page/"))
    assert second.content == b"page 1"
    assert second.headers["X-Number"] == "1"
    assert second.cookies == first.cookies
    assert view(RequestFactory().get("/other/")).content == b"page 2"


@pytest.mark.usefixtures("variants")
def test_a_page_that_is_too_big_for_the_cache_is_made_for_each_visitor() -> None:
    sizes = iter([10, 2_000_000, 2_000_000])

    @cache_page(60)
    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse("x" * next(sizes))

    assert len(view(RequestFactory().get("/small/")).content) == 10
    assert [len(view(RequestFactory().get("/page/")).content) for _ in range(2)] == [2_000_000] * 2


@pytest.mark.usefixtures("variants")
def test_a_fragment_that_is_too_big_for_the_cache_is_made_for_each_visitor() -> None:
    template = Template("{% load cache %}{% cache 60 large %}{{ text }}{% endcache %}")
    assert [template.render(Context({"text": letter * 2_000_000}))[0] for letter in "ab"] == ["a", "b"]


@pytest.mark.usefixtures("variants")
def test_cache_page_stores_a_page_for_each_value_of_its_vary_header() -> None:
    @cache_page(60)
    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(request.headers["X-Kind"], headers={"Vary": "X-Kind"})

    for _ in range(2):
        for kind in ("de", "fr"):
            request = RequestFactory().get("/page/", headers={"X-Kind": kind})
            assert view(request).content == kind.encode()


def test_cache_page_takes_a_compressed_alias(variants: CacheVariants) -> None:
    alias = variants.made_with({"COMPRESSOR": "zlib"}).alias
    calls = []

    @cache_page(60, cache=alias)
    def view(request: HttpRequest) -> HttpResponse:
        calls.append(request)
        return HttpResponse("page " * 10_000)

    assert view(RequestFactory().get("/page/")).content == view(RequestFactory().get("/page/")).content
    assert len(calls) == 1


def test_cache_page_works_around_an_asynchronous_view_in_its_thread(variants: CacheVariants) -> None:
    if variants.runner is None:
        pytest.skip("for the asyncio API only")
    calls = []

    @cache_page(60)
    async def view(request: HttpRequest) -> HttpResponse:
        calls.append(threading.get_ident())
        return HttpResponse(f"page {len(calls)}")

    request = RequestFactory().get("/page/")
    assert [variants.runner.run(view(request)).content for _ in range(2)] == [b"page 1"] * 2
    assert calls == [threading.get_ident()]


@pytest.mark.usefixtures("variants")
def test_a_template_fragment_is_cached() -> None:
    template = Template("{% load cache %}{% cache 60 fragment user %}{{ text }}{% endcache %}")
    assert template.render(Context({"user": 1, "text": "first"})) == "first"
    assert template.render(Context({"user": 1, "text": "second"})) == "first"
    assert template.render(Context({"user": 2, "text": "third"})) == "third"


# -- asynchronous views -----------------------------------------------------------------------------------------


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads that are started while the test runs."""
    begun: list[str] = []
    start = threading.Thread.start

    def watched(thread: threading.Thread) -> None:
        begun.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", watched)
    return begun


@pytest.mark.parametrize("options", [{}, {"NEAR_TTL": 1, "COMPRESSOR": "zlib", "SERIALIZER": "json"}], ids=str)
@pytest.mark.usefixtures("cluster")
def test_an_asynchronous_view_uses_the_cache_and_its_session_without_a_thread(
    settings: Any, threads: list[str], options: dict[str, Any]
) -> None:
    settings.CACHES = {"default": {"BACKEND": "django_clusterstate.cache.ClusterCache", "OPTIONS": options}}
    engine = import_module("django.contrib.sessions.backends.cache")

    async def compute() -> str:
        return "text " * 1000

    async def view(request: HttpRequest) -> JsonResponse:
        request.session = engine.SessionStore(request.COOKIES.get("sessionid"))
        await request.session.aset("visits", await request.session.aget("visits", 0) + 1)
        await request.session.asave()
        await default_cache.aset("hits", 1)
        await default_cache.aset_many({"a": 1, "b": [2]})
        return JsonResponse({
            "text": await default_cache.aget_or_set("text", compute, 60),
            "stale": await default_cache.aget_or_set("stale", compute, 60, stale=60),  # type: ignore[call-arg]
            "hits": await default_cache.aincr("hits"),
            "many": await default_cache.aget_many(["a", "b"]),
            "visits": await request.session.aget("visits"),
            "session": request.session.session_key,
        })  # fmt: skip

    async def visits() -> list[Any]:
        first = await view(RequestFactory().get("/"))
        factory = RequestFactory()
        factory.cookies["sessionid"] = body(first)["session"]
        second = await view(factory.get("/"))
        await asyncio.gather(*(view(factory.get("/")) for _ in range(4)))
        await default_cache.aclear()
        return [body(first), body(second)]

    first, second = asyncio.run(visits())
    assert first["text"] == first["stale"] == "text " * 1000
    assert first["many"] == {"a": 1, "b": [2]}
    assert (first["visits"], second["visits"]) == (1, 2)
    assert second["session"] == first["session"]
    assert threads == []
    assert caches["default"].get("text") is None


@pytest.fixture
def querying(cluster: object, settings: Any, transactional_db: None) -> Any:
    """A cache, and users in the database."""
    settings.CACHES = {"default": {"BACKEND": "django_clusterstate.cache.ClusterCache", "LOCATION": "lazy"}}
    User.objects.bulk_create([User(username="ada"), User(username="bob")])
    yield caches["default"]
    caches["default"].clear()


def names_of(users: Any) -> list[str]:
    return [user.username for user in users]


def test_asynchronous_code_stores_lazy_querysets(querying: Any) -> None:
    async def compute() -> Any:
        return User.objects.order_by("pk")

    async def store() -> list[Any]:
        cache = querying
        await cache.aset("set", User.objects.order_by("pk"))
        assert await cache.aadd("add", User.objects.order_by("pk")) is True
        assert await cache.aset_many({"many": User.objects.order_by("pk"), "other": 1}) == []
        values = [
            await cache.aget_or_set("given", User.objects.order_by("pk")),
            await cache.aget_or_set("made", lambda: User.objects.order_by("pk")),
            await cache.aget_or_set("awaited", compute),
            await cache.aget_or_set("stale", compute, stale=60),
        ]
        return [*values, *(await cache.aget_many(["set", "add", "many", "given", "made", "awaited", "stale"])).values()]

    found = async_to_sync(store)()
    assert [names_of(value) for value in found] == [["ada", "bob"]] * 11
    assert querying.get("other") == 1


class Counting:
    """Queries the database when it is unpickled, and so needs a thread."""

    def __reduce__(self) -> Any:
        return User.objects.count, ()


@pytest.mark.parametrize("near", [0, 600])
def test_asynchronous_code_reads_values_that_query_the_database(querying: Any, settings: Any, near: int) -> None:
    settings.CACHES = {"default": {**settings.CACHES["default"], "OPTIONS": {"NEAR_TTL": near}}}

    async def read() -> list[Any]:
        cache = caches["default"]
        await cache.aset("key", Counting())
        found = [await cache.aget("key"), await cache.aget("key"), await cache.aget_many(["key"])]
        return [*found, await cache.aget_or_set("key", 7), await cache.aget_or_set("new", lambda: "made")]

    assert async_to_sync(read)() == [2, 2, {"key": 2}, 2, "made"]


def test_a_lazy_value_that_cant_be_serialized_leaves_no_older_one(querying: Any) -> None:
    class Broken:
        def __reduce__(self) -> Any:
            User.objects.count()
            raise RuntimeError("not to be pickled")

    async def store() -> None:
        for call in (querying.aset("key", Broken()), querying.aset_many({"key": Broken()})):
            await querying.aset("key", "older")
            with pytest.raises(RuntimeError, match="not to be pickled"):
                await call
            assert await querying.aget("key") is None

    async_to_sync(store)()


def body(response: JsonResponse) -> Any:
    return json.loads(response.content)
