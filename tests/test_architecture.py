"""The house keeps its order: imports run downwards, the core is pure, files stay readable."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import django_clusterstate

PACKAGE = Path(django_clusterstate.__file__).parent
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "migrations" not in path.parts)
MAX_LINES = 400

# What the modules of each floor may import of the package: their own floor's, and those below.
FLOORS = {
    "core": {"core"},
    "exceptions": {"exceptions"},
    "wire": {"core", "exceptions", "wire"},
    "node": {"core", "exceptions", "wire", "node"},
    "client": {"core", "exceptions", "wire", "client"},
    "clientip": {"clientip"},
    "limits_storage": {"core", "exceptions", "client", "limits_storage"},
    "settings": {"clientip", "core", "wire"},
    "runtime": {"clientip", "core", "exceptions", "wire", "client", "limits_storage", "settings"},
}
FLOORS["panel"] = {*FLOORS["runtime"], "runtime", "cache", "cluster", "events", "models", "panel", "ratelimit"}
CORE_ROOMS = {"cache", "limits", "membership", "replication"}
KNOWN = {"replication": {"membership"}, "cache": {"replication"}, "limits": {"replication"}}
APIS = {"cache", "ratelimit", "layers", "events", "cluster"}
SIDE_EFFECTS = {"time", "random", "asyncio", "socket", "threading", "logging", "os", "django", "channels"}


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """(what is imported, the floor of this package that it belongs to or "") of each import."""
    folder = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, ""
        elif isinstance(node, ast.ImportFrom):
            if not node.level:
                yield node.module or "", ""
                continue
            base = folder[: len(folder) - node.level + 1]
            target = (*base, *(node.module.split(".") if node.module else ()))
            for name in node.names:
                full = target or (name.name,)
                yield ".".join((*full, name.name)), full[0]


def floor(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downwards(path: Path) -> None:
    allowed = FLOORS.get(floor(path))
    if allowed is None:
        return
    upwards = {what for what, of in imports(path) if of and of not in allowed and of != "__version__"}
    assert not upwards


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_core_has_no_clock_and_no_side_effects(path: Path) -> None:
    if floor(path) == "core":
        assert not {what for what, _ in imports(path) if what.split(".")[0] in SIDE_EFFECTS}


def test_rooms_of_the_core_do_not_know_each_other() -> None:
    """They share only what lies beside them; but `core/replication` knows the members, and what is copied knows it."""
    for path in (PACKAGE / "core").glob("*/*.py"):
        rooms = {what.split(".")[1] for what, of in imports(path) if of == "core"} & CORE_ROOMS
        known = KNOWN.get(path.parent.name, set())
        assert rooms <= {path.parent.name} | known, path.name


def test_only_the_admin_knows_the_panel() -> None:
    for path in MODULES:
        if floor(path) not in ("admin", "panel"):
            assert not {what for what, of in imports(path) if of == "panel"}, path


def test_node_and_wire_and_client_know_no_django() -> None:
    for room in ("core", "wire", "node", "client"):
        for path in (PACKAGE / room).rglob("*.py"):
            assert not {what for what, _ in imports(path) if what.split(".")[0] in ("django", "channels")}, path


def test_apis_for_django_do_not_import_each_other() -> None:
    for api in APIS - {"cluster"}:
        for path in (path for path in MODULES if floor(path) == api):
            assert not {what for what, of in imports(path) if of in APIS - {api}}, path


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_is_short_enough_to_be_read(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES


TESTS = Path(__file__).parent
SLEEPS = {
    # Functions that poll a condition, with a deadline.
    ("channel_layer/test_channel_layer.py", "until"),
    ("channel_layer/test_channel_layer.py", "eventually"),
    ("node/test_server.py", "until"),
    # Parts of a test that are slow on purpose: a slow peer, computation, resolver or channel layer, or a blocked loop.
    ("peers.py", "dribble"),
    ("peers.py", "take_time"),
    ("cache/test_single_flight.py", "__call__"),
    ("cache/test_single_flight.py", "compute"),
    ("node/test_advertise.py", "lookup"),
    ("node/test_server.py", "test_connection_that_says_a_byte_now_and_then_is_closed_as_well"),
    ("layers.py", "_send_late"),
    ("node_settings.py", "<lambda>"),
    # The pace of what is sent is what is tested.
    ("node/test_server.py", "test_links_of_many_peers_are_read_together"),
    ("test_events.py", "test_node_that_is_stopped_for_a_moment_counts_each_event_once"),
    ("channel_layer/test_channel_layer.py", "test_cancelled_receive_loses_nothing"),
    ("channel_layer/test_channel_layer.py", "test_healthy_restarts_leave_the_counters_for_alerts_at_zero"),
    ("channel_layer/test_channel_layer.py", "talk"),
    # Nothing is to happen meanwhile, which no condition can show.
    ("channel_layer/test_channel_layer.py", "test_expired_messages_are_never_received"),
    ("channel_layer/test_channel_layer.py", "test_receive_cancelled_as_its_message_arrives_leaves_it_to_the_next"),
    ("channel_layer/test_channel_layer.py", "test_outage_of_receiving_is_logged_once_and_its_end_once"),
    ("channel_layer/test_channel_layer.py", "test_channel_without_a_consumer_here_is_left_to_other_processes"),
    ("channel_layer/test_channel_layer.py", "test_channel_with_a_plain_name_receives_a_group_message_once"),
    ("channel_layer/test_channel_layer.py", "test_receivers_and_groups_outlive_their_node_and_follow_their_channels"),
    # The load of a measurement, and how long it lasts.
    ("deploys/worker.py", "hold"),
    ("deploys/fill.py", "rewrite_entries"),
    ("deploys/cost.py", "batch"),
    ("deploys/cost.py", "processor_time"),
    ("deploys/probe.py", "run"),
    ("deploys/test_bounds.py", "test_stopped_backup_costs_its_owners_no_time_and_no_memory"),
    ("deploys/test_kills.py", "test_stopped_backup_costs_the_keys_of_other_owners_nothing"),
    ("deploys/test_million.py", "test_node_with_a_million_limits_and_entries_is_replaced_in_a_minute"),
    ("node/loop_cluster.py", "until"),
    ("node/loop_cluster.py", "ask"),
}


def is_sleep(call: ast.Call) -> bool:
    """Whether a call waits for a time: a sleep, or a wait of less than a second, which nothing is meant to end."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    times = [part.value for part in call.args if isinstance(part, ast.Constant)]
    if ast.unparse(call.func) in {"time.sleep", "asyncio.sleep", "sleep"}:
        return times != [0]  # which lets others run, and waits for nothing
    return name in {"wait", "select", "poll"} and any(isinstance(time, float) and 0 < time < 1 for time in times)


def sleeping(node: ast.AST, function: str = "") -> Iterator[str]:
    """The innermost function around each sleep."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call) and is_sleep(child):
            yield function
        inner = "<lambda>" if isinstance(child, ast.Lambda) else getattr(child, "name", function)
        yield from sleeping(child, inner if isinstance(child, FUNCTIONS) else function)


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def test_tests_wait_for_conditions_and_never_for_a_time() -> None:
    """But those of faults, and the clocks of simulations, whose `wait()` takes none."""
    found = set()
    for path in TESTS.rglob("*.py"):
        name = str(path.relative_to(TESTS))
        if not name.startswith(("faults/", "core/membership/")):
            found |= {(name, function) for function in sleeping(ast.parse(path.read_text()))}
    assert found <= SLEEPS, found - SLEEPS


PATIENCE = 60  # seconds: a busy machine may hold up a process for half of that


def deadlines(call: ast.Call) -> Iterator[float]:
    """The seconds of a wait for a condition, an answer, a thread or a process, where they stand in the call."""
    name = ast.unparse(call.func).rpartition(".")[2]
    arguments = call.args[1:2] if name == "wait_until" else []
    if name in {"urlopen", "run", "communicate", "Barrier"}:
        arguments = [word.value for word in call.keywords if word.arg == "timeout"]
    for argument in arguments:
        if isinstance(argument, ast.Constant) and isinstance(argument.value, int | float):
            yield argument.value


def test_waits_of_tests_end_late_enough_for_a_busy_machine() -> None:
    """But those of faults, which have the machine to themselves."""
    for path in TESTS.rglob("*.py"):
        if "faults" not in path.parts:
            calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
            assert all(seconds >= PATIENCE for call in calls for seconds in deadlines(call)), path


def measures(test: ast.AST) -> bool:
    """Whether it asserts on seconds that it measured by itself."""
    return any(
        isinstance(node, ast.Assert) and re.search(r"\b(monotonic|perf_counter)\(\) -", ast.unparse(node))
        for node in ast.walk(test)
    )


def test_seconds_are_asserted_by_make_timing_only() -> None:
    for path in TESTS.rglob("test_*.py"):
        if "faults" not in path.parts:
            assert not measures(ast.parse(path.read_text())), path


def test_only_the_settings_module_keeps_state_of_the_process() -> None:
    """`functools.cache` and `global` elsewhere would be singletons under another name."""
    for path in MODULES:
        if floor(path) not in ("runtime", "decorators"):
            text = path.read_text()
            assert "functools.cache" not in text, path
            assert "\n    global " not in text, path
