"""`manage.py clusterstatus`."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from msgspec.structs import replace

from django_clusterstate import cluster as functions
from django_clusterstate import runtime
from django_clusterstate.client.routing import Target
from django_clusterstate.cluster import ClusterStatus
from django_clusterstate.core.membership.heartbeat import Identity, MemberState
from django_clusterstate.wire.address import TcpAddress, UnixAddress
from django_clusterstate.wire.messages import StatusReply
from django_clusterstate.wire.status import CopiesStatus, MemberStatus, Stats
from testproject.processes import ROOT, LocalCluster
from tests.conftest import NODES


def run(env: Mapping[str, str], *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "manage.py"), "clusterstatus", *options]
    return subprocess.run(command, capture_output=True, text=True, env=dict(env), timeout=60, check=False)


def called(*options: str) -> str:
    output = StringIO()
    call_command("clusterstatus", *options, stdout=output, no_color=True)
    return output.getvalue()


def node(name: str, epoch: int, members: tuple[MemberStatus, ...] = ()) -> StatusReply:
    identity = Identity(name, bytes(16), f"{name}:4370")
    return StatusReply(
        epoch, identity, MemberState.ALIVE, 60.0, False, "1", 2**20, members, Stats(), copies=CopiesStatus(True)
    )


def with_backups(name: str, backups: int) -> StatusReply:
    return replace(node(name, 1), copies=CopiesStatus(True, backups=backups))


def down(name: str) -> MemberStatus:
    return MemberStatus(Identity(name, bytes(16), f"{name}:4370"), MemberState.DOWN, 0, 12.3, 9.3, 1)


class TestExitCodes:
    def test_nodes_that_agree_are_0(self, cluster: LocalCluster) -> None:
        done = run(cluster.env("alpha"))
        assert done.returncode == 0, done.stderr
        assert "all nodes agree" in done.stdout

    def test_json_of_nodes_that_agree_is_0(self, cluster: LocalCluster) -> None:
        done = run(cluster.env("beta"), "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["asked"] == "beta"

    def test_no_node_is_1_and_says_how_to_start_one(self, tmp_path: Path) -> None:
        socket = str(tmp_path / "none.sock")
        done = run({**os.environ, "CLUSTERSTATE_SOCKET": socket})
        assert done.returncode == 1
        assert "manage.py clusternode" in done.stderr
        assert socket in done.stderr
        assert "Traceback" not in done.stderr

    def test_socket_in_a_directory_that_others_can_write_to_is_1_and_says_so(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o777)
        done = run({**os.environ, "CLUSTERSTATE_SOCKET": str(tmp_path / "node.sock")})
        assert done.returncode == 1
        assert f"others can write to {tmp_path} (its mode is 0777)" in done.stderr

    @pytest.mark.parametrize("options", [(), ("--json",)])
    @pytest.mark.parametrize(
        "status",
        [
            ClusterStatus("one", {"one": node("one", 1), "two": node("two", 2)}),
            ClusterStatus("one", {"one": node("one", 1)}, {"two": "node two: no answer"}),
            ClusterStatus("one", {"one": node("one", 1, (down("two"),))}),
        ],
        ids=["views differ", "one is silent", "one is down"],
    )
    def test_disagreement_is_1(
        self, monkeypatch: pytest.MonkeyPatch, status: ClusterStatus, options: tuple[str, ...]
    ) -> None:
        monkeypatch.setattr(functions, "status", lambda: status)
        with pytest.raises(SystemExit) as caught:
            called(*options)
        assert caught.value.code == 1


@pytest.mark.usefixtures("cluster")
class TestRealNodes:
    def test_each_node_has_a_line(self) -> None:
        lines = called().splitlines()
        assert [line.split()[0] for line in lines[1:4]] == list(NODES)
        assert all("alive" in line for line in lines[1:4])
        assert lines[-1] == "this host's node: alpha; all nodes agree"

    def test_waiting_for_as_many_as_there_are_returns_at_once(self) -> None:
        assert called("--wait-for", "3").splitlines()[-1] == "this host's node: alpha; all nodes agree"

    @pytest.mark.parametrize("number", ["2", "4"])
    def test_waiting_for_another_number_ends_with_the_time_and_1(self, number: str) -> None:
        with pytest.raises(SystemExit) as caught:
            called("--wait-for", number, "--timeout", "0.3")
        assert caught.value.code == 1

    def test_waiting_goes_on_while_a_node_is_not_synced(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = functions.status

        def unsynced() -> ClusterStatus:
            status = real()
            status.nodes["beta"] = replace(status.nodes["beta"], copies=CopiesStatus(unfilled=5))
            return status

        monkeypatch.setattr(functions, "status", unsynced)
        with pytest.raises(SystemExit) as caught:
            called("--wait-for", "3", "--timeout", "0.3")
        assert caught.value.code == 1

    def test_json_has_all_fields_by_name(self) -> None:
        shown = json.loads(called("--json"))
        assert shown["agree"] is True
        assert shown["asked"] == "alpha"
        assert shown["silent"] == {}
        assert list(shown["nodes"]) == list(NODES)
        alpha = shown["nodes"]["alpha"]
        assert set(alpha) == set(StatusReply.__struct_fields__)
        assert set(alpha["stats"]) == set(Stats.__struct_fields__)
        assert len(bytes.fromhex(alpha["identity"]["boot"])) == 16
        assert sorted(member["identity"]["name"] for member in alpha["members"]) == ["beta", "gamma"]


class TestTrouble:
    def test_member_that_a_node_alone_does_not_hear_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        member = MemberStatus(
            Identity("two", b"2" * 16, "10.0.0.2:4370"), MemberState.SUSPECT, 0, 9.0, 8.0, 1, unreachable=True
        )
        status = ClusterStatus("one", {"one": node("one", 1, members=(member,)), "two": node("two", 1)})
        monkeypatch.setattr(functions, "status", lambda: status)
        assert "two cannot reach one\n" in called()

    def test_member_that_is_down_has_a_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        members = (down("two"), down("three"))
        nodes = {"one": node("one", 1, members), "three": node("three", 1, members[:1])}
        monkeypatch.setattr(functions, "status", lambda: ClusterStatus("one", nodes))
        output = StringIO()
        with pytest.raises(SystemExit):
            call_command("clusterstatus", stdout=output, no_color=True)
        assert output.getvalue().splitlines()[3:] == [
            "two                  down      two:4370, last heartbeat 12 s ago",
            "this host's node: one; 2 agree, 1 down",
        ]

    def test_waiting_for_the_rest_is_0_while_a_member_is_down(self, monkeypatch: pytest.MonkeyPatch) -> None:
        status = ClusterStatus("one", {"one": node("one", 1, (down("two"),))})
        monkeypatch.setattr(functions, "status", lambda: status)
        assert called("--wait-for", "1").splitlines()[-1] == "this host's node: one; 1 agree, 1 down"
        assert json.loads(called("--wait-for", "1", "--json"))["down"] == ["two"]

    def test_problem_that_several_nodes_tell_of_is_shown_once_and_is_1(self, monkeypatch: pytest.MonkeyPatch) -> None:
        nodes = {
            name: replace(node(name, 1), problems=(f"{name} only", "two have one name")) for name in ("one", "two")
        }
        monkeypatch.setattr(functions, "status", lambda: ClusterStatus("one", nodes))
        output = StringIO()
        with pytest.raises(SystemExit) as caught:
            call_command("clusterstatus", stdout=output, no_color=True)
        assert caught.value.code == 1
        assert output.getvalue().splitlines()[3:6] == ["one only", "two have one name", "two only"]

    def test_nodes_with_different_values_of_backups_are_named_and_that_is_1(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        nodes = {name: with_backups(name, int(name > "a")) for name in "abc"}
        monkeypatch.setattr(functions, "status", lambda: ClusterStatus("a", nodes))
        output = StringIO()
        with pytest.raises(SystemExit) as caught:
            call_command("clusterstatus", stdout=output, no_color=True)
        assert caught.value.code == 1
        problem = "the nodes have different values of BACKUPS: 0 on a, 1 on b and c; give all the same"
        assert problem in output.getvalue().splitlines()

    def test_of_many_nodes_with_one_value_of_backups_some_are_named(self) -> None:
        nodes = {name: with_backups(name, int(name < "h")) for name in "abcdefgh"}
        assert ClusterStatus("a", nodes).problems == [
            "the nodes have different values of BACKUPS: 0 on h, 1 on a, b, c, d, e and 2 more; give all the same"
        ]
        assert not ClusterStatus("a", {name: with_backups(name, 0) for name in "abc"}).problems

    def test_what_keeps_copies_from_being_complete_has_a_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        copies = {
            "a": CopiesStatus(missing=1234, unfilled=5),
            "b": CopiesStatus(unfilled=5),
            "c": CopiesStatus(lag=1200, lag_seconds=1.25),
            "d": CopiesStatus(True, lag=12, lag_seconds=0.9),
        }
        nodes = {name: replace(node(name, 1), copies=copies[name]) for name in copies}
        nodes["e"] = replace(node("e", 1), state=MemberState.LEAVING, copies=CopiesStatus())
        monkeypatch.setattr(functions, "status", lambda: ClusterStatus("a", nodes))
        assert called().splitlines()[6:-1] == [
            "a is not synced: it has not received 1,234 of its slots",
            "b is not synced: other nodes have not received 5 of its slots",
            "c is not synced: not all keys have been sent to their backups yet",
            "c waits for other nodes to copy 1,200 changes, the first for 1.2 s",
        ]

    def test_entries_that_a_node_owns_and_copies_are_counted_apart(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stats = Stats(cache_entries=30, cache_owned=20, limit_entries=9, limit_owned=8, requests=7)
        monkeypatch.setattr(functions, "status", lambda: ClusterStatus("a", {"a": replace(node("a", 1), stats=stats)}))
        titles, row, _ = (line.split() for line in called().splitlines())
        assert titles[5:7] == ["entries", "copies"]
        assert row[6:8] == ["28", "11"]  # after "60 s" and "-"

    def test_readiness_says_what_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        status = replace(node("a", 1), copies=CopiesStatus(missing=1234))
        monkeypatch.setattr(functions, "local_status", lambda: status)
        assert functions.unready() == "this host's node is not synced: it has not received 1,234 of its slots"

    def test_health_says_what_keeps_the_node_of_this_host_from_serving(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for state, problems, said in (
            (MemberState.ALIVE, ("elsewhere",), ""),
            (MemberState.LEAVING, (), "this host's node is leaving"),
            (MemberState.JOINING, ("two have one name",), "this host's node is joining: two have one name"),
        ):
            status = replace(node("one", 1), state=state, problems=problems)
            monkeypatch.setattr(functions, "local_status", lambda status=status: status)
            assert functions.problem() == said

    def test_nodes_of_one_name_are_both_shown(self, monkeypatch: pytest.MonkeyPatch) -> None:
        second = replace(node("one", 1), identity=Identity("one", b"2" * 16, "10.0.0.2:4370"))
        local, other = Target("one", UnixAddress("/run/node.sock")), Target("one", TcpAddress("10.0.0.2", 4370))
        status = ClusterStatus.of({local: node("one", 1), other: second}, local, {})
        assert list(status.nodes) == ["one", "one at 10.0.0.2:4370"]
        assert status.asked == "one"

    def test_views_that_differ_and_silent_nodes_are_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        nodes = {"one": node("one", 1), "two": node("two", 2)}
        monkeypatch.setattr(functions, "status", lambda: ClusterStatus("", nodes, {"three": "too late"}))
        output = StringIO()
        with pytest.raises(SystemExit):
            call_command("clusterstatus", stdout=output, no_color=True)
        assert "three                silent    too late" in output.getvalue()
        assert (
            "this host's node: none answers; no agreement: 2 different views, 1 silent, 0 joining, 0 down"
            in output.getvalue()
        )

    def test_json_is_printed_though_no_node_answers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(functions, "status", lambda: ClusterStatus(silent={"/a.sock": "nobody"}))
        output = StringIO()
        with pytest.raises(CommandError, match=r"manage\.py clusternode"):
            call_command("clusterstatus", "--json", stdout=output)
        assert json.loads(output.getvalue()) == {
            "agree": False,
            "asked": "",
            "nodes": {},
            "silent": {"/a.sock": "nobody"},
            "down": [],
            "problems": [],
        }

    def test_wrong_settings_are_an_error_of_the_command(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CLUSTERSTATE_DEADLINE", "-1")
        runtime.forget()
        try:
            with pytest.raises(CommandError, match="DEADLINE"):
                called()
        finally:
            runtime.forget()
