"""Health: the view, and the check for django-health-check."""

import asyncio
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.test import AsyncClient, Client, RequestFactory
from health_check.views import HealthCheckView
from msgspec.structs import replace

from django_clusterstate import cluster as functions
from django_clusterstate.wire.messages import StatusReply
from django_clusterstate.wire.status import CopiesStatus
from testproject.processes import LocalCluster, wait_until
from tests.conftest import using

VIEW = "/cluster/health/"
READY = "/cluster/ready/"
SECONDS = 60.0

Ask = Callable[[], tuple[int, str]]


def view_by_wsgi() -> tuple[int, str]:
    response = Client().get(VIEW)
    return response.status_code, response.json().get("reason", "")


def view_by_asgi() -> tuple[int, str]:
    async def ask() -> Any:
        return await AsyncClient().get(VIEW)

    response = asyncio.run(ask())
    return response.status_code, response.json().get("reason", "")


def django_health_check() -> tuple[int, str]:
    view = HealthCheckView.as_view(checks=["django_clusterstate.contrib.health.ClusterNode"])

    async def ask() -> Any:
        return await view(RequestFactory().get("/ht/", {"format": "json"}))

    response = asyncio.run(ask())
    (said,) = json.loads(response.content).values()
    return (200, "") if response.status_code == 200 else (503, str(said))


def function() -> tuple[int, str]:
    problem = functions.problem()
    return (503, problem) if problem else (200, "")


@pytest.fixture(params=[view_by_wsgi, view_by_asgi, django_health_check, function], ids=lambda ask: ask.__name__)
def ask(request: pytest.FixtureRequest) -> Ask:
    """(200, "") or (503, why), by each way to it."""
    return request.param  # type: ignore[no-any-return]


@pytest.mark.usefixtures("cluster")
def test_node_that_serves_is_healthy(ask: Ask) -> None:
    assert ask() == (200, "")


@pytest.mark.usefixtures("no_node")
def test_no_node_is_unhealthy(ask: Ask) -> None:
    code, why = ask()
    assert code == 503
    assert "does not answer" in why


def test_joining_and_leaving_are_unhealthy_and_a_dead_peer_is_not(folder: Path, ask: Ask) -> None:
    env = {"CLUSTERSTATE_HEARTBEAT_INTERVAL": "1", "CLUSTERSTATE_SUSPECT_AFTER": "3", "CLUSTERSTATE_DOWN_AFTER": "6"}
    with LocalCluster(folder, ("a", "b"), env=env) as cluster, using(cluster, "a"):
        cluster.start()
        wait_until(lambda: "joining" in ask()[1], SECONDS, "a answers, and joins")
        cluster.wait_for()
        wait_until(lambda: ask() == (200, ""), SECONDS, "a serves")
        cluster.kill("b")
        assert ask() == (200, "")
        wait_until(lambda: _knows_of_death(cluster), SECONDS, "a knows that b is down")
        assert ask() == (200, "")
        cluster.start("b")  # a node that is alone doesn't stay for those who haven't heard
        cluster.wait_for()
        cluster.processes["a"].signal(signal.SIGTERM)
        wait_until(lambda: ask()[0] == 503, SECONDS, "a leaves")
        code, why = ask()
        assert code == 503
        assert "leaving" in why


def _knows_of_death(cluster: LocalCluster) -> bool:
    status = cluster.status("a")
    return status is not None and any(member.state == "down" for member in status.members)


def test_view_is_open_and_tells_nothing_else(cluster: LocalCluster) -> None:
    response = Client().get(VIEW)
    assert response.json() == {"ok": True}
    assert "no-store" in response["Cache-Control"]
    assert Client().head(VIEW).status_code == 200
    assert Client().post(VIEW).status_code == 405


@pytest.mark.usefixtures("cluster")
def test_a_node_is_ready_only_while_it_is_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Client().get(READY)
    assert (answer.status_code, answer.json()) == (200, {"ok": True})
    assert "no-store" in answer["Cache-Control"]
    serving = functions.local_status()
    assert isinstance(serving, StatusReply)

    async def unsynced() -> StatusReply:
        return replace(serving, copies=CopiesStatus(missing=1234))

    monkeypatch.setattr(functions, "alocal_status", unsynced)
    answer = Client().get(READY)
    assert answer.status_code == 503
    assert answer.json()["reason"] == "this host's node is not synced: it has not received 1,234 of its slots"
    assert Client().get(VIEW).status_code == 200


@pytest.mark.usefixtures("no_node")
def test_no_node_is_not_ready() -> None:
    answer = Client().get(READY)
    assert (answer.status_code, answer.json()["reason"]) == (503, "this host's node does not answer")
