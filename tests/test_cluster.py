"""`cluster`: one suite for the blocking functions and their `a…` twins."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync

from django_clusterstate import cluster as functions
from django_clusterstate.exceptions import Unavailable
from testproject.processes import LocalCluster
from tests.conftest import NODES, using
from tests.timing import check_seconds

Ask = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Calls a function of `cluster` by name, the blocking one or its asynchronous twin."""
    if request.param == "sync":
        return lambda name, *args: getattr(functions, name)(*args)
    return lambda name, *args: async_to_sync(getattr(functions, f"a{name}"))(*args)


@pytest.mark.usefixtures("cluster")
class TestThreeNodes:
    def test_members_are_the_nodes_by_name(self, ask: Ask) -> None:
        assert [member.name for member in ask("members")] == list(NODES)

    def test_local_node_is_the_one_of_this_host(self, ask: Ask) -> None:
        assert ask("local_node") == "alpha"

    def test_ranking_has_every_member_once(self, ask: Ask) -> None:
        assert sorted(ask("ranking", "a key")) == list(NODES)

    def test_owner_is_first_in_the_ranking(self, ask: Ask) -> None:
        assert all(ask("owner", f"key {i}") == ask("ranking", f"key {i}")[0] for i in range(20))

    def test_text_and_its_bytes_are_one_key(self, ask: Ask) -> None:
        assert ask("ranking", "clé") == ask("ranking", "clé".encode())

    def test_every_node_owns_some_keys(self, ask: Ask) -> None:
        assert {ask("owner", f"key {i}") for i in range(100)} == set(NODES)

    @pytest.mark.parametrize("node", NODES)
    @pytest.mark.timing
    def test_ping_takes_some_time(self, ask: Ask, node: str) -> None:
        seconds = ask("ping", node)
        check_seconds(seconds, below=1, at_least=0)

    def test_ping_of_a_node_that_is_not_a_member_is_none(self, ask: Ask) -> None:
        assert ask("ping", "nobody") is None

    def test_status_has_the_reply_of_every_node(self, ask: Ask) -> None:
        status = ask("status")
        assert list(status.nodes) == list(NODES)
        assert all(name == node.identity.name for name, node in status.nodes.items())
        assert all(len(node.members) == 2 for node in status.nodes.values())
        assert status.asked == "alpha"
        assert status.silent == {}
        assert status.agree

    def test_blocking_and_asyncio_functions_agree(self) -> None:
        assert functions.members() == async_to_sync(functions.amembers)()
        assert functions.ranking("a key") == async_to_sync(functions.aranking)("a key")


def test_owner_is_the_same_from_every_host(running_cluster: LocalCluster, ask: Ask) -> None:
    owners = []
    for name in NODES:
        with using(running_cluster, name):
            assert ask("local_node") == name
            owners.append([ask("owner", f"key {i}") for i in range(20)])
    assert owners[0] == owners[1] == owners[2]


class TestNoNode:
    @pytest.mark.parametrize("call", [("members",), ("owner", "key"), ("ranking", "key")], ids=lambda call: call[0])
    def test_unavailable_says_where_and_how_to_start_one(self, no_node: str, ask: Ask, call: tuple[str, ...]) -> None:
        with pytest.raises(Unavailable, match=r"manage\.py clusternode") as caught:
            ask(*call)
        assert no_node in str(caught.value)

    def test_local_node_is_unavailable(self, no_node: str, ask: Ask) -> None:
        with pytest.raises(Unavailable, match=r"none\.sock"):
            ask("local_node")

    def test_ping_is_none(self, no_node: str, ask: Ask) -> None:
        assert ask("ping", "alpha") is None

    def test_status_names_the_nodes_that_do_not_reply(self, no_node: str, ask: Ask) -> None:
        status = ask("status")
        assert status.nodes == {}
        assert status.asked == ""
        assert list(status.silent) == [no_node]
        assert not status.agree


class TestStoppedNode:
    @pytest.fixture
    def stopped(self, tmp_path: Path) -> Iterator[str]:
        """The stopped one of two nodes: it still owns its keys, and doesn't reply."""
        env = {"CLUSTERSTATE_DOWN_AFTER": "60", "CLUSTERSTATE_DEADLINE": "3"}
        with LocalCluster(tmp_path, ["one", "two"], env=env) as cluster:
            cluster.start()
            cluster.wait_for()
            with using(cluster, "one"):
                functions.members()
                async_to_sync(functions.amembers)()
                cluster.processes["two"].signal(signal.SIGSTOP)
                try:
                    yield "two"
                finally:
                    cluster.processes["two"].signal(signal.SIGCONT)

    def test_ping_is_none_and_status_has_the_reason(self, stopped: str, ask: Ask) -> None:
        assert ask("ping", stopped) is None
        status = ask("status")
        assert list(status.nodes) == ["one"]
        assert "node two at 127.0.0.1" in status.silent[stopped]
        assert status.asked == "one"
        assert not status.agree
