"""The house keeps its order: imports run downwards, the core is pure, files stay readable."""

import ast
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
CORE_ROOMS = {"cache", "limits", "membership"}
FACES = {"cache", "ratelimit", "layers", "events", "cluster"}
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
    """`core/cache`, `core/limits` and `core/membership` share only what lies beside them."""
    for path in (PACKAGE / "core").glob("*/*.py"):
        rooms = {what.split(".")[1] for what, of in imports(path) if of == "core"} & CORE_ROOMS
        assert rooms <= {path.parent.name}, path.name


def test_only_the_admin_knows_the_panel() -> None:
    for path in MODULES:
        if floor(path) not in ("admin", "panel"):
            assert not {what for what, of in imports(path) if of == "panel"}, path


def test_node_and_wire_and_client_know_no_django() -> None:
    for room in ("core", "wire", "node", "client"):
        for path in (PACKAGE / room).rglob("*.py"):
            assert not {what for what, _ in imports(path) if what.split(".")[0] in ("django", "channels")}, path


def test_faces_of_django_stand_side_by_side() -> None:
    for face in FACES - {"cluster"}:
        for path in (path for path in MODULES if floor(path) == face):
            assert not {what for what, of in imports(path) if of in FACES - {face}}, path


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_is_short_enough_to_be_read(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES


def test_unit_tests_never_sleep() -> None:
    tests = Path(__file__).parent
    for room in ("core", "wire", "node", "client"):
        for path in (tests / room).rglob("*.py"):
            assert "time.sleep(" not in path.read_text(), path


def test_only_the_settings_module_keeps_state_of_the_process() -> None:
    """`functools.cache` and `global` elsewhere would be singletons under another name."""
    for path in MODULES:
        if floor(path) not in ("runtime", "decorators"):
            text = path.read_text()
            assert "functools.cache" not in text, path
            assert "\n    global " not in text, path
