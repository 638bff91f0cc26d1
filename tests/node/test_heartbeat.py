"""The sealed heartbeat: signed, versioned, and nothing decoded that isn't ours."""

import asyncio
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_clusterstate.core.membership.heartbeat import Heartbeat, Identity, MemberState
from django_clusterstate.core.membership.members import Timings
from django_clusterstate.core.membership.membership import Membership
from django_clusterstate.exceptions import ProtocolError
from django_clusterstate.node.channels.in_process_layer import SessionMessage
from django_clusterstate.node.heartbeat import Heartbeats, decode_heartbeat, encode_heartbeat
from django_clusterstate.wire.derived_keys import SecretKey, derive_heartbeat_keys
from django_clusterstate.wire.handshake import VERSIONS
from django_clusterstate.wire.messages import decode_reply
from tests.node.logs import KeptLog

OLD, NEW, FOREIGN = derive_heartbeat_keys(["old", "new", "foreign"], "default")
BEAT = Heartbeat(Identity("a", b"a" * 16, "10.0.0.1:4370"), 0, 1, MemberState.ALIVE, 7, channel="x")


def versioned(oldest: int, newest: int, body: bytes, key: SecretKey = NEW) -> dict[str, Any]:
    whole = bytes((oldest, newest)) + body
    return {"body": whole, "macs": [key.mac(whole)]}


def test_heartbeat_is_what_was_sealed() -> None:
    assert decode_heartbeat(encode_heartbeat(BEAT, [NEW]), [NEW]) == BEAT


@pytest.mark.parametrize(
    ("signs", "knows"), [([NEW, OLD], [OLD]), ([OLD], [NEW, OLD]), ([NEW, OLD], [NEW, OLD])], ids=str
)
def test_nodes_before_and_after_a_rotation_of_the_secret_hear_each_other(
    signs: list[SecretKey], knows: list[SecretKey]
) -> None:
    assert decode_heartbeat(encode_heartbeat(BEAT, signs), knows) == BEAT


def test_heartbeat_of_another_secret_is_refused_before_it_is_decoded() -> None:
    message = versioned(*VERSIONS, b"\xc1 not even msgpack", FOREIGN)
    with pytest.raises(ProtocolError, match="not signed with any of this node's secrets"):
        decode_heartbeat(message, [NEW, OLD])


def test_changed_heartbeat_is_refused() -> None:
    message = encode_heartbeat(BEAT, [NEW])
    message["body"] = message["body"][:-1] + b"y"
    with pytest.raises(ProtocolError, match="not signed"):
        decode_heartbeat(message, [NEW])


@pytest.mark.parametrize("versions", [(VERSIONS[1] + 1, VERSIONS[1] + 3), (0, VERSIONS[0] - 1)])
def test_node_without_a_common_version_is_refused_whatever_it_says(versions: tuple[int, int]) -> None:
    with pytest.raises(ProtocolError, match=f"versions {versions[0]} to {versions[1]}, this side .* upgrade the older"):
        decode_heartbeat(versioned(*versions, b"something new"), [NEW])


@pytest.mark.parametrize("versions", [(VERSIONS[0], VERSIONS[1] + 1), (0, VERSIONS[0])])
def test_older_and_newer_nodes_with_a_common_version_are_heard(versions: tuple[int, int]) -> None:
    assert decode_heartbeat(versioned(*versions, msgspec.msgpack.encode(BEAT)), [NEW]) == BEAT


def test_fields_of_a_newer_version_are_ignored() -> None:
    fields = [*msgspec.msgpack.decode(msgspec.msgpack.encode(BEAT)), {"added": "later"}]
    assert decode_heartbeat(versioned(*VERSIONS, msgspec.msgpack.encode(fields)), [NEW]) == BEAT


@given(
    st.dictionaries(st.sampled_from(["body", "macs", "type"]), st.one_of(st.binary(), st.lists(st.binary()), st.none()))
)
def test_no_message_raises_anything_else(message: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        decode_heartbeat(message, [NEW])


@given(st.binary())
def test_no_signed_body_raises_anything_else(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_heartbeat(versioned(*VERSIONS, b"\x90" + body), [NEW])


# -- bounds -------------------------------------------------------------------------------------------------


def signed(fields: list[Any]) -> dict[str, Any]:
    return versioned(*VERSIONS, msgspec.msgpack.encode(fields))


def fields_of(**changed: Any) -> list[Any]:
    """A heartbeat with one member in it, as the arrays that are sent; some fields as the test wants them."""
    name, boot, address, weight, incarnation, sequence, epoch, observations, channel = (
        changed.pop(field, default)
        for field, default in {
            "name": "a", "boot": b"a" * 16, "address": "10.0.0.1:4370", "weight": 1.0, "incarnation": 0,
            "sequence": 1, "epoch": 7, "observations": [observation_of()], "channel": "x!y",
        }.items()
    )  # fmt: skip
    assert not changed
    return [[name, boot, address, weight], incarnation, sequence, "alive", epoch, observations, channel]


def observation_of(name: str = "b", address: str = "b:1", incarnation: int = 0, age: float = 0.5) -> list[Any]:
    return [name, b"b" * 16, address, "alive", incarnation, age]


BAD_NAMES = ["", "x" * 101, "a\n2026 ERROR forged", "\x1b[2J", "a\x00", "a\x9b31m", "a\u202eb", "a\u2028b"]
BAD_ADDRESSES = [
    "",
    "nowhere",
    "a:0",
    "a:65536",
    "a:-1",
    "a b:1",
    "a:1\n",
    "/run/x.sock:1",
    "[::1]",
    "::1:4370",
    "x" * 301 + ":1",
]
BAD_FLOATS = [math.nan, math.inf, -math.inf, -1.0]


@pytest.mark.parametrize(
    "changed",
    [
        *({"name": name} for name in BAD_NAMES),
        *({"address": address} for address in BAD_ADDRESSES),
        *({"weight": weight} for weight in [*BAD_FLOATS, 0.0, 1000.1]),
        *({"boot": boot} for boot in [b"", b"a" * 15, b"a" * 17]),
        *({field: number} for field in ("incarnation", "sequence") for number in (-1, 2**53 + 1)),
        {"epoch": -1},
        *({"channel": channel} for channel in ["x" * 101, "a b", "a\n", "a!b!c"]),
        {"observations": [observation_of()] * 65},
        *({"observations": [observation_of(name=name)]} for name in BAD_NAMES),
        *({"observations": [observation_of(address=address)]} for address in BAD_ADDRESSES),
        *({"observations": [observation_of(age=age)]} for age in [*BAD_FLOATS, 1e10]),
        *({"observations": [observation_of(incarnation=number)]} for number in (-1, 2**53 + 1)),
    ],
    ids=ascii,
)
def test_signed_heartbeat_with_a_field_beyond_its_bounds_is_refused_in_one_printable_line(
    changed: dict[str, Any],
) -> None:
    assert decode_heartbeat(signed(fields_of()), [NEW]).identity.name == "a"
    with pytest.raises(ProtocolError, match="a field is out of bounds") as caught:
        decode_heartbeat(signed(fields_of(**changed)), [NEW])
    assert str(caught.value).isprintable()
    assert str(caught.value).isascii()


@pytest.mark.parametrize(
    "address", ["web-1.example.org:1", "10.0.0.1:65535", "[fe80::1%eth0]:4370", "[::1]:1", "m_y:2"]
)
@pytest.mark.parametrize("weight", [1e-9, 1000])
def test_heartbeat_at_its_bounds_is_heard(address: str, weight: float) -> None:
    beat = decode_heartbeat(signed(fields_of(name="ü" * 100, address=address, weight=weight, channel="")), [NEW])
    assert (beat.identity.address, beat.identity.weight) == (address, weight)


@pytest.mark.parametrize("bad", [["a\n", b"a" * 16, "a:1", 1.0], ["a", b"a", "a:1", 1.0], ["a", b"a" * 16, "a:1", 0]])
def test_bad_identity_breaks_no_requester(bad: list[Any]) -> None:
    good = ["a", b"a" * 16, "a:1", 1.0]
    for reply in ([39, 1, [good, bad], "a"], [40, 1, bad], [42, 1, bad, "alive", 1.0, False, "1", 1, [], []]):
        with pytest.raises(msgspec.ValidationError):
            decode_reply(msgspec.msgpack.encode(reply))
        assert decode_reply(msgspec.msgpack.encode([39, 1, [good], "a"]))


# -- who speaks -----------------------------------------------------------------------------------------------


class Layer:
    """Gives out these messages, then nothing."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self.messages = list(messages)
        self.sent: list[dict[str, Any]] = []

    async def new_channel(self, prefix: str = "specific.") -> str:
        return f"{prefix}x!y"

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        self.sent.append(message)

    async def receive(self, channel: str) -> dict[str, Any]:
        if not self.messages:
            await asyncio.Event().wait()  # forever
        return self.messages.pop(0)

    async def group_add(self, group: str, channel: str) -> None:
        pass

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        self.sent.append(message)


class RecordedHeartbeats:
    """Heartbeats over a layer, and what became of what it gave out."""

    def __init__(self, layer: Layer) -> None:
        self.heard: list[tuple[str, bool]] = []
        log = KeptLog()
        self.rejected = log.lines
        me = Identity("me", b"m" * 16, "10.0.0.9:4370")
        self.beats = Heartbeats(
            Membership(me, Timings(), 0.0), layer, "group", [NEW], lambda: 0.0,
            lambda beat, fresh: self.heard.append((beat.identity.name, fresh)), log,
        )  # fmt: skip

    async def listen(self, count: int) -> None:
        task = asyncio.create_task(self.beats.run())
        async with asyncio.timeout(60):
            while len(self.heard) + len(self.rejected) < count:
                await asyncio.sleep(0)
        task.cancel()


async def test_heartbeat_by_a_link_speaks_for_the_start_at_its_other_end_only() -> None:
    message = encode_heartbeat(BEAT, [NEW])
    sessions = (b"a" * 16, None, b"b" * 16, b"")
    recorded = RecordedHeartbeats(Layer(message, *(SessionMessage(message, session) for session in sessions)))
    await recorded.listen(5)
    assert recorded.heard == [("a", False), ("a", True), ("a", False)]
    assert (
        recorded.rejected
        == ["heartbeat dropped: sender a (10.0.0.1:4370) does not match the peer on this connection"] * 2
    )
    assert recorded.beats.rejected == 2


async def test_who_owns_the_channel_layer_cannot_say_that_a_recording_is_fresh() -> None:
    recorded = RecordedHeartbeats(Layer(encode_heartbeat(BEAT, [NEW]) | {"session": b"a" * 16}))
    await recorded.listen(1)
    assert recorded.heard == [("a", False)]


async def test_heartbeat_that_cannot_be_taken_in_is_no_failure_of_the_layer() -> None:
    recorded = RecordedHeartbeats(Layer(encode_heartbeat(BEAT, [NEW])))

    def fails(beat: Heartbeat, fresh: bool) -> None:
        raise KeyError("a bug")

    recorded.beats.on_heard = fails
    await recorded.listen(1)
    assert recorded.rejected == ["heartbeat dropped: KeyError('a bug') at the heartbeat of a (10.0.0.1:4370)"]
    assert not recorded.beats.failing


async def test_answer_names_first_whom_it_answers() -> None:
    layer = Layer()
    await RecordedHeartbeats(layer).beats.answer("channel", BEAT.identity)
    assert decode_heartbeat(layer.sent[0], [NEW]).observations[0].boot == BEAT.identity.boot
