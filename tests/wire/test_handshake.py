"""The state machines of both sides, connected to each other: who is accepted, and what each side learns."""

import contextlib
import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_clusterstate.exceptions import ProtocolError
from django_clusterstate.wire import handshake
from django_clusterstate.wire.derived_keys import LinkKey, derive_link_keys
from django_clusterstate.wire.framing import HANDSHAKE_LIMIT
from django_clusterstate.wire.handshake import (
    VERSIONS,
    Challenge,
    DialedItself,
    DialerHandshake,
    Hello,
    NodeHandshake,
    Offers,
    OtherInstance,
    OtherNode,
    Role,
    Verdict,
)

NEW, OLD, OTHER = derive_link_keys(["new secret", "old secret", "another's"], "cluster")
BOOT, EARLIER = b"b" * 16, b"e" * 16
ADDRESS = "10.0.0.2:4370"
ANYONE = Hello(dialed=ADDRESS)
REFUSED = "it uses a different SECRET or SECRET_KEY, or belongs to a different cluster"


def node(*keys: LinkKey) -> NodeHandshake:
    return NodeHandshake(keys, "web-2", BOOT, "10.0.0.1:5000")


def connect(node: NodeHandshake, dialer: DialerHandshake) -> None:
    """Raises what the dialer raises; then both have a session that fits."""
    dialer.receive_answer(node.receive(dialer.receive_challenge(node.challenge)))
    assert node.session is not None
    assert dialer.session is not None
    assert node.session[1].feed(bytes(dialer.session[0].seal(b"ping"))) == b"ping"
    assert dialer.session[1].feed(bytes(node.session[0].seal(b"pong"))) == b"pong"


def challenge_of(oldest: int, newest: int) -> bytes:
    return msgspec.msgpack.encode(Challenge(handshake.MAGIC, oldest, newest, b"n" * 32))


# -- the secret ---------------------------------------------------------------------------------------------------


def test_both_sides_accept_each_other_with_the_same_secret() -> None:
    connect(node(NEW), DialerHandshake([NEW], ANYONE))


def test_wrong_secret_is_refused_and_both_sides_know_the_reason() -> None:
    web, dialer = node(NEW), DialerHandshake([OTHER], ANYONE)
    answer = web.receive(dialer.receive_challenge(web.challenge))
    assert web.session is None
    assert web.refused == "it uses a different secret, or belongs to a different cluster"
    with pytest.raises(ProtocolError, match=REFUSED):
        dialer.receive_answer(answer)
    assert dialer.session is None


def test_cluster_of_another_name_is_refused() -> None:
    (elsewhere,) = derive_link_keys(["new secret"], "elsewhere")
    with pytest.raises(ProtocolError, match=REFUSED):
        connect(node(NEW), DialerHandshake([elsewhere], ANYONE))


def test_peer_without_the_secret_causes_no_key_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    monkeypatch.setattr(handshake, "Responder", made.append)
    web = node(NEW, OLD)
    for offers in ((), (b"",), (b"x" * 300,), (b"\0" * 8 + b"k" * 48,) * 4):
        assert web.receive(msgspec.msgpack.encode(Offers(VERSIONS[1], offers))) == b""
    assert not made


@pytest.mark.parametrize(("ours", "theirs"), list(itertools.product([(0,), (1,), (0, 1), (1, 0)], repeat=2)))
def test_rotation_splits_nothing_while_one_secret_is_common(ours: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    """All 16 ways in which two sides can have one or both of two secrets."""
    secrets = (NEW, OLD)
    web, dialer = node(*(secrets[i] for i in ours)), DialerHandshake([secrets[i] for i in theirs], ANYONE)
    if set(ours) & set(theirs):
        connect(web, dialer)
    else:
        with pytest.raises(ProtocolError, match=REFUSED):
            connect(web, dialer)


# -- changed, repeated, relayed -----------------------------------------------------------------------------------


def test_each_altered_bit_of_the_challenge_is_detected() -> None:
    challenge = node(NEW).challenge
    for bit in range(len(challenge) * 8):
        web = node(NEW)
        shown = bytearray(web.challenge)
        shown[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ProtocolError):
            connect_with_challenge(web, DialerHandshake([NEW], ANYONE), bytes(shown))


def connect_with_challenge(web: NodeHandshake, dialer: DialerHandshake, shown: bytes) -> None:
    """A handshake in which the dialer gets a challenge other than the node's."""
    dialer.receive_answer(web.receive(dialer.receive_challenge(shown)))


def test_each_altered_bit_of_the_offers_and_of_the_answer_is_detected() -> None:
    web, dialer = node(NEW), DialerHandshake([NEW], ANYONE)
    offers = dialer.receive_challenge(web.challenge)
    (offer,) = msgspec.msgpack.decode(offers, type=Offers).offers
    for bit in range(len(offer) * 8):
        changed = bytearray(offer)
        changed[bit // 8] ^= 1 << bit % 8
        with contextlib.suppress(ProtocolError):
            assert web.receive(msgspec.msgpack.encode(Offers(VERSIONS[1], (bytes(changed),)))) == b""
        assert web.session is None
    answer = web.receive(offers)
    for bit in range(len(answer) * 8):
        changed = bytearray(answer)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ProtocolError):
            dialer.receive_answer(bytes(changed))


def test_offers_cannot_be_replayed_on_another_connection() -> None:
    web, dialer = node(NEW), DialerHandshake([NEW], ANYONE)
    offers = dialer.receive_challenge(web.challenge)
    web.receive(offers)
    assert web.session is not None
    second = node(NEW)
    assert second.receive(offers) == b""
    assert second.session is None


def test_answer_cannot_be_replayed_on_another_connection() -> None:
    web, dialer = node(NEW), DialerHandshake([NEW], ANYONE)
    challenge = web.challenge
    answer = web.receive(dialer.receive_challenge(challenge))
    second = DialerHandshake([NEW], ANYONE)
    second.receive_challenge(challenge)
    with pytest.raises(ProtocolError, match="modified, or made with a different secret"):
        second.receive_answer(answer)


def test_offers_reflected_to_their_sender_are_refused() -> None:
    dialer = DialerHandshake([NEW], ANYONE)
    offers = msgspec.msgpack.decode(dialer.receive_challenge(node(NEW).challenge), type=Offers)
    for offer in offers.offers:
        with pytest.raises(ProtocolError):
            dialer.receive_answer(b"\0" + offer[8:])


def test_relay_learns_nothing_and_the_node_behind_it_knows_that_another_was_expected() -> None:
    """An attacker at an old address of web-9 passes everything on to web-2, and back."""
    web = node(NEW)
    with pytest.raises(OtherNode, match=rf"expected web-9 at {ADDRESS}, but web-2 answers there"):
        connect(web, DialerHandshake([NEW], Hello(expected_name="web-9", dialed=ADDRESS)))
    assert web.refused == f"expected node web-9 at {ADDRESS}, but this is node web-2"


@pytest.mark.parametrize("wanted", ["", "web-2", "web-9"])
def test_node_that_dials_itself_notices(wanted: str) -> None:
    hello = Hello(Role.NODE, wanted, boot=BOOT, name="web-2", dialed=ADDRESS)
    web, dialer = node(NEW), DialerHandshake([NEW], hello)
    with pytest.raises(DialedItself):
        connect(web, dialer)
    assert dialer.session is None


def test_peer_without_the_secret_cannot_feign_that_a_node_dialed_itself() -> None:
    """The attacker knows the node's boot ID from its challenge."""
    hello = Hello(Role.NODE, "web-9", boot=BOOT, name="web-2", dialed=ADDRESS)
    for key in (NEW, OTHER):
        with pytest.raises(ProtocolError, match=REFUSED) as refusal:
            connect_with_challenge(node(key), DialerHandshake([NEW], hello), node(NEW).challenge)
        assert not isinstance(refusal.value, DialedItself)


def test_reflected_and_changed_challenge_is_refused() -> None:
    web, dialer = node(NEW), DialerHandshake([NEW], Hello(Role.NODE, boot=BOOT, name="web-2", dialed=ADDRESS))
    challenge = msgspec.msgpack.decode(web.challenge, type=Challenge)
    disguised = msgspec.msgpack.encode(msgspec.structs.replace(challenge, boot=EARLIER))
    with pytest.raises(ProtocolError, match=REFUSED):
        connect_with_challenge(web, dialer, disguised)


# -- who answers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "hello",
    [ANYONE, Hello(expected_name="web-2", dialed=ADDRESS), Hello(Role.NODE, "web-2", BOOT, ADDRESS, "web-1", EARLIER)],
)
def test_expected_node_accepts_and_both_sides_are_identified(hello: Hello) -> None:
    web, dialer = node(NEW), DialerHandshake([NEW], hello)
    connect(web, dialer)
    assert web.hello == hello
    assert dialer.verdict == Verdict(True, "web-2", BOOT, "10.0.0.1:5000")


def test_restarted_node_and_another_node_are_distinguished() -> None:
    web, dialer = (
        node(NEW),
        DialerHandshake([NEW], Hello(expected_name="web-2", expected_boot=EARLIER, dialed=ADDRESS)),
    )
    with pytest.raises(OtherInstance, match=f"web-2 at {ADDRESS} has been restarted") as raised:
        connect(web, dialer)
    assert (raised.value.name, raised.value.boot) == ("web-2", BOOT)
    assert web.refused == "it expects an earlier instance of web-2"
    assert dialer.session is None


def test_dialer_does_not_trust_a_node_that_accepts_for_another() -> None:
    class Liar(NodeHandshake):
        def _verdict(self) -> Verdict:
            return Verdict(True, "web-2", BOOT)

    with pytest.raises(OtherNode):
        connect(Liar([NEW]), DialerHandshake([NEW], Hello(expected_name="web-9", dialed=ADDRESS)))


def test_unix_socket_is_neither_sealed_nor_authenticated() -> None:
    web, dialer = NodeHandshake((), "web-2", BOOT), DialerHandshake((), ANYONE)
    dialer.receive_answer(web.receive(dialer.receive_challenge(web.challenge)))
    assert dialer.verdict.name == "web-2"
    assert web.session is dialer.session is None


def test_dialer_with_keys_refuses_plaintext() -> None:
    web, dialer = NodeHandshake((), "web-2", BOOT), DialerHandshake([NEW], ANYONE)
    with pytest.raises(ProtocolError):
        dialer.receive_answer(web.receive(dialer.receive_challenge(web.challenge)))
    plain = DialerHandshake((), ANYONE)
    sealing = node(NEW)
    with pytest.raises(ProtocolError):
        plain.receive_answer(sealing.receive(plain.receive_challenge(sealing.challenge)))


# -- versions and nonsense ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("theirs", "chosen"), [((2, 2), 2), ((2, 9), 2), ((1, 2), 2)])
def test_newest_common_version_is_chosen(theirs: tuple[int, int], chosen: int) -> None:
    offers = DialerHandshake([NEW], ANYONE).receive_challenge(challenge_of(*theirs))
    assert msgspec.msgpack.decode(offers, type=Offers).version == chosen


def test_overlapping_version_ranges_give_their_newest_common_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "VERSIONS", (2, 4))
    web = node(NEW)
    challenge = web.challenge
    monkeypatch.setattr(handshake, "VERSIONS", (3, 7))
    dialer = DialerHandshake([NEW], ANYONE)
    offers = dialer.receive_challenge(challenge)
    assert msgspec.msgpack.decode(offers, type=Offers).version == 4
    monkeypatch.setattr(handshake, "VERSIONS", (2, 4))
    dialer.receive_answer(web.receive(offers))


@pytest.mark.parametrize("theirs", [(3, 4), (-3, 1), (1, 1)])
def test_peers_without_a_common_version_are_refused_with_advice(theirs: tuple[int, int]) -> None:
    dialer = DialerHandshake([NEW], ANYONE)
    message = f"it speaks protocol versions {theirs[0]} to {theirs[1]}, this side 2 to 2: upgrade the older one"
    with pytest.raises(ProtocolError, match=message):
        dialer.receive_challenge(challenge_of(*theirs))
    with pytest.raises(ProtocolError, match="it speaks protocol versions 2 to 2, this side 2 to 2"):
        node(NEW).receive(dialer.last_message)


@pytest.mark.parametrize("version", [-1, VERSIONS[1] + 1, VERSIONS[1] + 256])
def test_version_that_was_not_offered_is_refused(version: int) -> None:
    web, dialer = node(NEW), DialerHandshake([NEW], ANYONE)
    offers = msgspec.msgpack.decode(dialer.receive_challenge(web.challenge), type=Offers)
    with pytest.raises(ProtocolError, match=f"version {version} was chosen, which was not offered"):
        web.receive(msgspec.msgpack.encode(Offers(version, offers.offers)))


def test_another_msgpack_protocol_is_refused() -> None:
    with pytest.raises(ProtocolError, match="is not a clusterstate node"):
        DialerHandshake([NEW], ANYONE).receive_challenge(msgspec.msgpack.encode(Challenge("redis", 1, 1, b"")))


@given(st.one_of(st.binary(max_size=HANDSHAKE_LIMIT), st.just(b"\x91" * HANDSHAKE_LIMIT)))
def test_random_bytes_are_refused_by_both_sides(payload: bytes) -> None:
    dialer = DialerHandshake([NEW], ANYONE)
    with pytest.raises(ProtocolError):
        dialer.receive_challenge(payload)
    dialer.receive_challenge(node(NEW).challenge)
    with pytest.raises(ProtocolError):
        dialer.receive_answer(payload)
    with pytest.raises(ProtocolError):
        node(NEW).receive(payload)


def test_every_handshake_message_fits_the_handshake_limit() -> None:
    keys = derive_link_keys(["a", "b", "c", "d", "e"], "cluster")
    name, address = "\U0001f600" * 100, "x" * 300
    web = NodeHandshake(keys, name, BOOT, address)
    dialer = DialerHandshake(keys, Hello(Role.NODE, name, BOOT, address, name, EARLIER, address))
    offers = dialer.receive_challenge(web.challenge)
    answer = web.receive(offers)
    assert not web.refused
    assert max(map(len, (web.challenge, offers, answer))) < HANDSHAKE_LIMIT
