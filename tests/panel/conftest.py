from importlib import import_module

import pytest
from django.contrib.auth.models import User
from django.test import Client


@pytest.fixture
def client(db: None) -> Client:
    """A browser in which a superuser is logged in."""
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    return client


@pytest.fixture(autouse=True)
def page_timeout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine takes longer than half a second, in which a page expects all nodes to answer."""
    if request.node.get_closest_marker("timing") is None:
        for module in ("events_tab", "key_lookup", "node_reports"):
            monkeypatch.setattr(import_module(f"django_clusterstate.panel.{module}"), "PAGE_TIMEOUT", 5.0)
