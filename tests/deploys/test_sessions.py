"""Sessions in the cache outlive all nodes."""

from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from testproject.processes import LocalCluster
from tests.conftest import using
from tests.deploys.load import Workers
from tests.deploys.rolling import nodes, replace, restart, wait_until_synced

pytestmark = pytest.mark.deploy


def is_logged_in(cluster: LocalCluster, host: str, browser: Client) -> bool:
    """Whether a site on this host knows who it is."""
    with using(cluster, host):
        return browser.get("/admin/").status_code == 200


@pytest.mark.parametrize("count", [3, 6])
@pytest.mark.parametrize("new_names", [False, True], ids=["same names", "new names"])
def test_login_outlives_the_replacement_of_every_node_under_load(
    folder: Path, db: None, settings: Any, new_names: bool, count: int
) -> None:
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.cache"
    User.objects.create_superuser("root", password="secret")
    browser, stranger = Client(), Client()
    with LocalCluster(folder, nodes(count)) as cluster:
        cluster.start()
        wait_until_synced(cluster)
        with using(cluster, "n0"):
            assert browser.login(username="root", password="secret")
        with Workers(cluster, cluster.names[:3]):
            for name in list(cluster.names):
                if new_names:
                    replace(cluster, name, f"new-{name}")
                else:
                    restart(cluster, name)
                for host in cluster.names:
                    assert is_logged_in(cluster, host, browser)
                    assert not is_logged_in(cluster, host, stranger)
