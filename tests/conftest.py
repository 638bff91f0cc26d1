"""A real cluster of three nodes for the tests that need one, started once for a whole run."""

import asyncio
import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from django_clusterstate import runtime
from testproject.processes import LocalCluster
from tests.cache_variants import cache, requests, unconnected, variants  # noqa: F401 - fixtures
from tests.forks import FORKS, InChild, in_child_of
from tests.layers import EMBEDDED, LAYERS, Layer, Redis, layer_env
from tests.views import ViewVariant

# The same examples in each run, and no limit of their time: a busy machine, too, gives the result that others had.
hypothesis.settings.register_profile(
    "ci", max_examples=50, deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile(
    "thorough", hypothesis.settings.get_profile("ci"), derandomize=False, max_examples=3000
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

pytest_plugins = ["tests.timing"]

NODES = ("alpha", "beta", "gamma")

# What takes longest begins first, so that no worker is left with it in the end.
LONGEST = ("test_node.py", "ratelimit/test_limits_storage.py", "client/test_clients.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--unit", action="store_true", help="leave out tests of real nodes, and fail if a process starts")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.config.getoption("--unit"):
        _forbid_processes()


@functools.cache
def _forbid_processes() -> None:
    sys.addaudithook(_start_no_process)


def _start_no_process(event: str, _: object) -> None:
    if event in {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "os.exec"}:
        raise AssertionError("a unit test starts no process")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--unit"):
        real = {
            item
            for item in items
            if "running_cluster" in getattr(item, "fixturenames", ()) or item.get_closest_marker("process")
        }
        config.hook.pytest_deselected(items=list(real))
        items[:] = [item for item in items if item not in real]

    def place(item: pytest.Item) -> int:
        path = str(item.path.relative_to(Path(__file__).parent))
        return next((place for place, name in enumerate(LONGEST) if path.startswith(name)), len(LONGEST))

    items.sort(key=place)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short enough for the path of a unix socket, which pytest's own isn't."""
    with tempfile.TemporaryDirectory(prefix="cs-") as path:
        yield Path(path)


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str, object], None]:
    """Notes a measured figure."""

    def note(what: str, value: object) -> None:
        record_property(what, value)
        print(f"\n  {what}: {value}", end="", flush=True)

    return note


@pytest.fixture(params=FORKS)
def in_child(request: pytest.FixtureRequest) -> InChild:
    """Starts work in a forked child, by any kind of fork, and returns how to ask whether all went well."""
    return in_child_of(FORKS[request.param])


@pytest.fixture(params=LAYERS, ids=lambda path: path.rpartition(".")[2])
def layer(request: pytest.FixtureRequest, folder: Path) -> Iterator[Layer]:
    """Each layer that heartbeats may take, with its Redis on the loopback interface."""
    if request.param == EMBEDDED:
        yield Layer({}, None)
        return
    if shutil.which("redis-server") is None:
        pytest.skip("needs redis-server (Debian: apt-get install redis-server)")
    redis = Redis(folder)
    try:
        yield Layer(layer_env(request.param, redis.address), redis)
    finally:
        redis.process.stop()


@pytest.fixture
def no_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """This host has no node; the path where it would be."""
    path = str(tmp_path / "none.sock")
    monkeypatch.setenv("CLUSTERSTATE_SOCKET", path)
    runtime.forget()
    yield path
    runtime.forget()


@pytest.fixture(scope="session")
def running_cluster() -> Iterator[LocalCluster]:
    """Three nodes, one view. Not to be harmed: tests that kill nodes start their own.

    When a busy machine holds up a node for longer than the defaults, nobody is suspect or down, and requests wait.
    """
    env = {"CLUSTERSTATE_SUSPECT_AFTER": "30", "CLUSTERSTATE_DOWN_AFTER": "60", "CLUSTERSTATE_DEADLINE": "10"}
    with (
        tempfile.TemporaryDirectory(prefix="cs-") as folder,
        LocalCluster(Path(folder), NODES, env=env, deadline=30) as cluster,
    ):
        cluster.start()
        cluster.wait_until_synced()
        yield cluster


@pytest.fixture
def cluster(running_cluster: LocalCluster) -> Iterator[LocalCluster]:
    """The same; this process uses the first node as its host's."""
    with using(running_cluster, NODES[0]):
        yield running_cluster


class using:  # noqa: N801 - reads as a word in `with using(cluster, "alpha"):`
    """This process is on the host of that node."""

    def __init__(self, cluster: LocalCluster, name: str) -> None:
        self._wanted = {key: value for key, value in cluster.env(name).items() if key.startswith("CLUSTERSTATE_")}
        # A machine that runs tests may hold up a process for longer than the default of 0.1 s, and than a second.
        self._wanted.setdefault("CLUSTERSTATE_DEADLINE", "10")

    def __enter__(self) -> None:
        self._before = {key: os.environ.get(key) for key in self._wanted}
        os.environ.update(self._wanted)
        runtime.forget()

    def __exit__(self, *exc_info: object) -> None:
        for key, value in self._before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
        runtime.forget()


@pytest.fixture(params=["sync", "async"])
def offline(request: pytest.FixtureRequest) -> Iterator[ViewVariant]:
    """Views of one kind, wherever this process may find its node."""
    if request.param == "sync":
        yield ViewVariant(None)
        return
    with asyncio.Runner() as runner:
        yield ViewVariant(runner)


@pytest.fixture
def variant(cluster: object, offline: ViewVariant) -> ViewVariant:
    return offline


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No node answers this process."""
    monkeypatch.setenv("CLUSTERSTATE_SOCKET", str(tmp_path / "nowhere.sock"))
    runtime.forget()
    yield
    monkeypatch.undo()
    runtime.forget()
