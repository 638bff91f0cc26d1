import pytest
from django.contrib.auth.models import User
from django.test import Client


@pytest.fixture
def client(db: None) -> Client:
    """A browser in which a superuser is logged in."""
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    return client
