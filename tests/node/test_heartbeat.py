"""The sealed heartbeat: signed, versioned, and nothing decoded that isn't ours."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_clusterstate.core.messages import Heartbeat, Identity, State
from django_clusterstate.exceptions import ProtocolError
from django_clusterstate.node.heartbeat import seal, unseal
from django_clusterstate.wire.handshake import VERSIONS
from django_clusterstate.wire.keys import Key, derive_channel_keys

OLD, NEW, FOREIGN = derive_channel_keys(["old", "new", "foreign"], "default")
BEAT = Heartbeat(Identity("a", b"a" * 16, "10.0.0.1:4370"), 0, 1, State.ALIVE, 7, channel="x")


def versioned(oldest: int, newest: int, body: bytes, key: Key = NEW) -> dict[str, Any]:
    whole = bytes((oldest, newest)) + body
    return {"body": whole, "macs": [key.mac(whole)]}


def test_heartbeat_is_what_was_sealed() -> None:
    assert unseal(seal(BEAT, [NEW]), [NEW]) == BEAT


@pytest.mark.parametrize(
    ("signs", "knows"), [([NEW, OLD], [OLD]), ([OLD], [NEW, OLD]), ([NEW, OLD], [NEW, OLD])], ids=str
)
def test_nodes_before_and_after_a_rotation_of_the_secret_hear_each_other(signs: list[Key], knows: list[Key]) -> None:
    assert unseal(seal(BEAT, signs), knows) == BEAT


def test_heartbeat_of_another_secret_is_refused_before_it_is_decoded() -> None:
    message = versioned(*VERSIONS, b"\xc1 not even msgpack", FOREIGN)
    with pytest.raises(ProtocolError, match="isn't signed with our secret"):
        unseal(message, [NEW, OLD])


def test_changed_heartbeat_is_refused() -> None:
    message = seal(BEAT, [NEW])
    message["body"] = message["body"][:-1] + b"y"
    with pytest.raises(ProtocolError, match="isn't signed"):
        unseal(message, [NEW])


@pytest.mark.parametrize("versions", [(VERSIONS[1] + 1, VERSIONS[1] + 3), (0, VERSIONS[0] - 1)])
def test_node_without_a_common_version_is_refused_whatever_it_says(versions: tuple[int, int]) -> None:
    with pytest.raises(ProtocolError, match=f"versions {versions[0]} to {versions[1]}, this side .* upgrade the older"):
        unseal(versioned(*versions, b"something new"), [NEW])


@pytest.mark.parametrize("versions", [(VERSIONS[0], VERSIONS[1] + 1), (0, VERSIONS[0])])
def test_older_and_newer_nodes_with_a_common_version_are_heard(versions: tuple[int, int]) -> None:
    assert unseal(versioned(*versions, msgspec.msgpack.encode(BEAT)), [NEW]) == BEAT


def test_fields_of_a_newer_version_are_ignored() -> None:
    fields = [*msgspec.msgpack.decode(msgspec.msgpack.encode(BEAT)), {"added": "later"}]
    assert unseal(versioned(*VERSIONS, msgspec.msgpack.encode(fields)), [NEW]) == BEAT


@given(
    st.dictionaries(st.sampled_from(["body", "macs", "type"]), st.one_of(st.binary(), st.lists(st.binary()), st.none()))
)
def test_no_message_raises_anything_else(message: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        unseal(message, [NEW])


@given(st.binary())
def test_no_signed_body_raises_anything_else(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        unseal(versioned(*VERSIONS, b"\x90" + body), [NEW])
