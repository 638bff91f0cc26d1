"""The documents name what there is, and nothing else. Sphinx checks their links: `make docs`."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
from django.core.cache.backends.base import BaseCache
from django.core.management.base import BaseCommand, CommandParser
from django.dispatch import Signal

from django_clusterstate import (
    __version__,
    cache,
    checks,
    cluster,
    decorators,
    events,
    layers,
    ratelimit,
    signals,
)
from django_clusterstate.management.commands import clusterevents, clusternode, clusterstatus
from django_clusterstate.settings import ENTRIES
from django_clusterstate.wire import messages as wire
from django_clusterstate.wire.status import Changes, RequesterStats, Stats

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
ALL = [ROOT / "README.md", ROOT / "CHANGELOG.md", *PAGES]
HEADING = re.compile(r"^(#+) (.+?)\n(.*?)(?=^#+ |\Z)", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def sections(name: str, level: int, within: str = "") -> dict[str, str]:
    """The headings of a level and what stands under each, up to the next heading; below one of higher level, or all."""
    found: dict[str, str] = {}
    above = ""
    # A comment in a code block begins as a heading does.
    for hashes, title, body in HEADING.findall(CODE.sub("", read(name))):
        if len(hashes) < level:
            above = title
        elif len(hashes) == level and within in ("", above):
            found[title] = body
    return found


def rows(name: str) -> dict[str, str]:
    """The rows of all tables, by the code in their first cell."""
    return dict(re.findall(r"^\| `([^`]+)` \|(.*)\|$", read(name), re.MULTILINE))


def described() -> str:
    """All there is to read, as one text."""
    return "\n".join(path.read_text(encoding="utf-8") for path in ALL)


# -- settings -------------------------------------------------------------------------------------------------


def test_settings_have_a_heading_each_and_no_others_do() -> None:
    assert set(sections("docs/settings.md", 3, "CLUSTERSTATE")) == set(ENTRIES)


@pytest.mark.parametrize("entry", ENTRIES)
def test_setting_is_described_with_type_default_and_variable(entry: str) -> None:
    text = sections("docs/settings.md", 3, "CLUSTERSTATE")[entry]
    kind = ENTRIES[entry].kind.name
    assert re.search(rf"^`CLUSTERSTATE_{entry}`: {kind}( or None)?, default: ", text, re.MULTILINE)
    default = ENTRIES[entry].default
    if default is not None:
        shown = f'"{default}"' if isinstance(default, str) else str(default)
        assert f"default: `{shown}`" in text


def test_no_setting_is_mentioned_that_does_not_exist() -> None:
    named = re.findall(r"CLUSTERSTATE(?:_|\[[\"'])([A-Z][A-Z0-9_]*)", described())
    assert named
    assert set(named) <= set(ENTRIES)


def test_links_to_settings_have_an_entry() -> None:
    linked = re.findall(r"\[`([A-Z_]+)`\]\((?:settings\.md)?#([a-z_]+)\)", described())
    assert linked
    assert [(name, anchor) for name, anchor in linked if name.lower() != anchor] == []
    assert {name for name, _ in linked} <= {*ENTRIES, *cache.options.OPTIONS}


def test_cache_options_have_a_heading() -> None:
    headings = {title.partition(":")[0] for title in sections("docs/settings.md", 3, "The cache backend")}
    assert headings == cache.options.OPTIONS


def test_methods_of_the_cache_beyond_djangos_have_a_heading_each_and_no_others_do() -> None:
    others = {"raising", "routing_key", "clear_each", *dir(BaseCache)}
    methods = {name for name in vars(cache.ClusterCache) if not name.startswith("_")} - others
    headings = " ".join(sections("docs/cache.md", 3, "Beyond Django's API"))
    named = set(re.findall(r"(\w+)\(\)", headings))
    assert named == {name for name in methods if f"a{name}" in methods}
    assert methods == named | {f"a{name}" for name in named}


def test_channel_layer_options_are_described_with_their_defaults() -> None:
    table = rows("docs/settings.md")
    for name, parameter in inspect.signature(layers.ClusterChannelLayer.__init__).parameters.items():
        if name != "self":
            default = parameter.default
            assert table[name].startswith(" none " if default is None else f" `{default}` ")


def test_check_ids_have_a_heading_each_and_no_others_do() -> None:
    ids = set(re.findall(r'id="(clusterstate\.[A-Z]\d+)"', inspect.getsource(checks)))
    assert ids
    assert set(sections("docs/settings.md", 3, "System checks")) == ids


# -- commands -------------------------------------------------------------------------------------------------


def own_options(command: BaseCommand) -> set[str]:
    """The options that a command adds to Django's."""
    parser = CommandParser(add_help=False)
    command.add_arguments(parser)
    return {max(action.option_strings, key=len) for action in parser._actions if action.option_strings}


@pytest.mark.parametrize(
    "module", [clusternode, clusterstatus, clusterevents], ids=["clusternode", "clusterstatus", "clusterevents"]
)
def test_command_options_have_a_heading_each_and_no_others_do(module: Any) -> None:
    name = module.__name__.rpartition(".")[2]
    _, _, chapter = read("docs/commands.md").partition(f"\n## {name}\n")
    chapter = chapter.partition("\n## ")[0]
    assert set(re.findall(r"^#### (--[a-z-]+)$", chapter, re.MULTILINE)) == own_options(module.Command())


def test_exit_codes_of_all_commands_are_described() -> None:
    assert read("docs/commands.md").count("\n### Exit codes\n") == 3


# -- protocol -------------------------------------------------------------------------------------------------


MESSAGES = [*get_args(wire.Request), *get_args(wire.Reply)]


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_message_is_described_with_tag_and_fields(kind: type[wire.Message]) -> None:
    row = rows("docs/protocol.md")[kind.__name__]
    assert row.startswith(f" {kind.__struct_config__.tag} |")
    fields = {field for field in kind.__struct_fields__ if field != "epoch"}
    assert [field for field in fields if f"`{field}`" not in row] == []


def test_no_message_is_described_that_does_not_exist() -> None:
    real = {kind.__name__ for kind in MESSAGES} | {"Challenge", "Proof", "Welcome"}
    tagged = {name for name, row in rows("docs/protocol.md").items() if re.match(r" \d+ \|", row)}
    assert tagged <= real


COUNTERS = {*Stats.__struct_fields__, *RequesterStats.__struct_fields__, *Changes.__struct_fields__} - {
    "tally",
    "changes",
}


@pytest.mark.parametrize("counter", sorted(COUNTERS))
def test_counter_is_described(counter: str) -> None:
    assert counter in rows("docs/operations.md")


# -- log lines ------------------------------------------------------------------------------------------------

LEVELS = {"debug", "info", "warning", "error", "critical", "exception", "log", "write"}
SOURCES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "django_clusterstate").rglob("*.py")}


def message_of(node: ast.expr) -> str | None:
    """A literal text with `…` in place of what varies; None for any other expression."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        text = node.value
    elif isinstance(node, ast.JoinedStr):
        text = "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    else:
        return None
    return re.sub(r"%[-0-9.]*[a-z]|\{[^}]*\}", "…", text)


def calls_in(tree: ast.AST) -> Iterator[tuple[ast.Call, str, str]]:
    """(call, name of the object, name of the method) of each call of a method."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of = node.func.value
            yield node, getattr(of, "id", getattr(of, "attr", "")), node.func.attr


def messages_logged(tree: ast.AST) -> Iterator[str]:
    """The message of each call of a logger. Where that is an argument of a method, the messages that this is given."""
    methods = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for call, of, level in calls_in(tree):
        if level in LEVELS and of.endswith(("logger", "log")):
            message = call.args[level == "log"]
            if isinstance(message, ast.Name):
                method = next(one for one in methods if call in ast.walk(one))
                index = [argument.arg for argument in method.args.args].index(message.id) - 1
                given = [other.args[index] for other, _, name in calls_in(tree) if name == method.name]
            else:
                given = [message]
            for one in given:
                text = message_of(one)
                assert text is not None, f"the message of a log line is not a literal: {ast.unparse(call)}"
                yield text


LINES = {text for tree in SOURCES.values() for text in messages_logged(tree)} - {"……"}  # a rationed line, and a count
TEXTS = {text for tree in SOURCES.values() for node in ast.walk(tree) if isinstance(node, ast.expr)
         if (text := message_of(node))}  # fmt: skip
LOG_ROWS = sorted(
    re.sub("<[^>]*>", "…", line)
    for cell in re.findall(r"^\| (`.*?`) \|", read("docs/operations.md").partition("## Log messages")[2]
                           .partition("## Counters")[0], re.MULTILINE)
    for line in re.findall(r"`([^`]+)`", cell)
)  # fmt: skip


def matches(pattern: str, text: str) -> bool:
    """Whether the text is what the pattern says, where `…` stands for anything."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("…"))), text) is not None


def is_written(row: str) -> bool:
    """Whether it is a text of the package, a line that begins with some other text, or one that ends with a text."""
    if any(matches(row, text) for text in TEXTS):
        return True
    if any(matches(line, row) for line in LINES if not line.endswith("…")):
        return True
    ends = [found.end() for found in re.finditer(": ", row)]
    return any(row[:end] + "…" in LINES for end in ends) and any(
        matches(row[end:], text) for end in ends for text in TEXTS
    )


def test_log_lines_are_found() -> None:
    assert len(LINES) > 30
    assert len(LOG_ROWS) > 50


def test_log_lines_have_no_contractions() -> None:
    assert not [line for line in LINES if "n't" in line]


@pytest.mark.parametrize("line", sorted(LINES))
def test_log_line_is_described(line: str) -> None:
    assert any(matches(row, line) or matches(line, row) for row in LOG_ROWS)


@pytest.mark.parametrize("row", LOG_ROWS)
def test_no_log_line_is_described_that_is_never_written(row: str) -> None:
    assert is_written(row)


# -- API ------------------------------------------------------------------------------------------------------


def public_functions(module: ModuleType) -> set[str]:
    return {
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and not name.startswith("_")
        and (value.__module__ == module.__name__ or name in getattr(module, "__all__", ()))
    }


@pytest.mark.parametrize("module", [cluster, ratelimit, events], ids=["cluster", "ratelimit", "events"])
def test_public_functions_have_a_heading_each_and_no_others_do(module: ModuleType) -> None:
    headings = " ".join(sections("docs/api.md", 3, module.__name__.rpartition(".")[2]))
    assert set(re.findall(r"(\w+)\(\)", headings)) == public_functions(module)


def test_signals_are_described() -> None:
    named = {name for name, value in vars(signals).items() if isinstance(value, Signal)}
    assert named
    assert named <= set(rows("docs/api.md"))


def test_arguments_of_the_decorator_are_described() -> None:
    assert set(inspect.signature(decorators.cluster_ratelimit).parameters) <= set(rows("docs/api.md"))


# -- the whole ------------------------------------------------------------------------------------------------


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))


def test_make_commands_exist() -> None:
    named = re.findall(r"(?:^\$ |`)make ([a-z-]+)", described(), re.MULTILINE)
    assert {"demo", "test"} <= set(named)
    assert set(named) <= make_targets()


def test_make_targets_are_described() -> None:
    assert {f"make {target}" for target in make_targets() - {"help"}} <= set(rows("docs/contributing.md"))


def test_options_of_the_benchmark_are_described() -> None:
    options = set(re.findall(r'add_argument\("(--[a-z-]+)"', read("bench/__main__.py")))
    assert options
    assert options == {name for name in rows("docs/contributing.md") if name.startswith("--")}


def test_readme_shows_demo_and_test_as_the_commands_of_a_checkout() -> None:
    assert re.findall(r"^\$ (make [a-z]+)", read("README.md"), re.MULTILINE) == ["make demo", "make test"]


def test_every_page_is_in_the_table_of_contents() -> None:
    entries = [entry for tree in re.findall(r"```\{toctree\}(.*?)```", read("docs/index.md"), re.DOTALL)
               for entry in tree.split() if not entry.startswith(":")]  # fmt: skip
    assert {page.stem for page in PAGES} - {"index"} <= set(entries)


def relative_links(path: Path) -> Iterator[Path]:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            yield path.parent / target


def test_links_of_the_readme_lead_to_files() -> None:
    links = list(relative_links(ROOT / "README.md"))
    assert links
    assert [str(link) for link in links if not link.exists()] == []


def test_no_placeholder_is_left() -> None:
    assert re.findall(r"\{\{[^}]*\}\}", described()) == []


def test_changelog_knows_the_current_version() -> None:
    assert __version__ in read("CHANGELOG.md")
