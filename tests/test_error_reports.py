"""What Django mails to ADMINS when something of ours fails shows neither a secret nor a key."""

import html
import os
import secrets
import socket
import sys
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.core.exceptions import ImproperlyConfigured
from django.test import RequestFactory, override_settings
from django.views.debug import ExceptionReporter

from django_clusterstate import runtime
from django_clusterstate.layers import ClusterChannelLayer
from django_clusterstate.settings import read_settings
from django_clusterstate.wire import messages as wire
from django_clusterstate.wire.framing import frame
from django_clusterstate.wire.handshake import NodeHandshake
from tests.peers import KEYS, ScriptedNode, read_frame

SECRET, OLDER = secrets.token_urlsafe(40), secrets.token_urlsafe(40)  # reports show source code as well


def report_of(call: Callable[[], object]) -> str:
    """All that a mail to ADMINS says of the exception that the call raises."""
    try:
        call()
    except Exception:
        reporter = ExceptionReporter(RequestFactory().get("/"), *sys.exc_info())
        return html.unescape(reporter.get_traceback_html()) + reporter.get_traceback_text()
    raise AssertionError("it did not fail")


def forms(material: bytes) -> list[str]:
    """How parts of the bytes look where they are shown: long ones are broken into lines."""
    parts = [material[start : start + 6] for start in range(len(material) - 5)]
    return [repr(part)[2:-1] for part in parts] + [part.hex() for part in parts]


def send() -> None:
    async_to_sync(ClusterChannelLayer().group_send)("chat", {"type": "said", "text": "hello"})


def ask() -> None:
    client = runtime.get_client()
    client.call_node(client.routing.local, frame(wire.encode(wire.Ping())))


@pytest.mark.parametrize("call", [send, ask])
@pytest.mark.parametrize("answer", [b"", b"\x00" * 60, b"\xff"], ids=["refusal", "nonsense", "index"])
def test_failing_call_shows_neither_secret_nor_key(call: Callable[[], None], answer: bytes) -> None:
    def script(sock: socket.socket) -> None:
        sock.sendall(frame(NodeHandshake(KEYS).challenge))
        read_frame(sock)
        sock.sendall(frame(answer))

    options: dict[str, Any] = {"SECRET": SECRET, "SECRET_FALLBACKS": [OLDER], "DEADLINE": 10}
    with ScriptedNode(script) as node:
        options["SOCKET"] = str(node.address)
        with override_settings(DEBUG=False, CLUSTERSTATE=options), pytest.MonkeyPatch.context() as patch:
            patch.delenv("CLUSTERSTATE_SOCKET", raising=False)
            shown = report_of(call)
            settings = runtime.get_settings()
    assert "receive_answer" in shown
    links = [key for link in settings.link_keys for key in (link.psk, link.offers)]
    for key in (*links, *settings.channel_keys):
        assert not any(form in shown for form in forms(key._bytes))
    assert SECRET not in shown
    assert OLDER not in shown


class Reading:
    """Reads settings, and shows none in its own frame."""

    def __init__(self, options: dict[str, object], secret: str = SECRET) -> None:
        self._options = options
        self._secret = secret

    def __call__(self) -> None:
        read_settings(self._options, {"CLUSTERSTATE_SECRET": self._secret})


@pytest.mark.parametrize("wrong", [{"PORT": 1}, {"DEADLINE": "soon"}, {"BIND": "nowhere"}, {"NODE_NAME": "a\n"}])
def test_wrong_setting_shows_no_secret(wrong: dict[str, object]) -> None:
    with override_settings(DEBUG=False):
        shown = report_of(Reading({"SECRET": SECRET, "SECRET_FALLBACKS": [OLDER], **wrong}))
    assert ImproperlyConfigured.__name__ in shown
    assert "read_settings" in shown
    assert SECRET not in shown
    assert OLDER not in shown


@pytest.mark.parametrize("fallback", [False, True])
def test_secret_that_is_no_text_is_refused_and_not_shown(fallback: bool) -> None:
    """As of an environment variable with a byte that isn't UTF-8."""
    wrong = os.fsdecode(b"\xe9") + SECRET
    read = Reading({"SECRET_FALLBACKS": [wrong]}) if fallback else Reading({}, wrong)
    with override_settings(DEBUG=False):
        shown = report_of(read)
    assert ImproperlyConfigured.__name__ in shown
    assert "a character that UTF-8 does not have" in shown
    assert SECRET not in shown
