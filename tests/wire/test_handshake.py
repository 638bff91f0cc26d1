"""Two state machines wired to each other: who gets in, and who doesn't."""

import hmac

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_clusterstate.exceptions import ProtocolError
from django_clusterstate.wire import handshake
from django_clusterstate.wire.framing import HANDSHAKE_LIMIT
from django_clusterstate.wire.handshake import (
    MAX_SECRETS,
    VERSIONS,
    Challenge,
    NodeHandshake,
    OwnChallenge,
    Proof,
    RequesterHandshake,
    Welcome,
    derive_keys,
)

NEW, OLD, OTHER = derive_keys(["new secret", "old secret", "another's"], "cluster", "link")


def shake(node: NodeHandshake, requester: RequesterHandshake) -> None:
    requester.receive_welcome(node.receive(requester.receive_challenge(node.challenge())))


def challenge_of(oldest: int, newest: int) -> bytes:
    return msgspec.msgpack.encode(Challenge(handshake.MAGIC, oldest, newest, b"n" * 32))


def test_both_sides_accept_each_other_with_the_same_secret() -> None:
    shake(NodeHandshake([NEW]), RequesterHandshake([NEW]))


def test_wrong_secret_is_refused_by_the_node() -> None:
    node, requester = NodeHandshake([NEW]), RequesterHandshake([OTHER])
    with pytest.raises(ProtocolError, match="wrong secret"):
        node.receive(requester.receive_challenge(node.challenge()))


@pytest.mark.parametrize("mac", [b"", b"\0" * 32, b"\0" * 33])
def test_node_that_cannot_prove_itself_is_refused_by_the_requester(mac: bytes) -> None:
    requester = RequesterHandshake([NEW])
    requester.receive_challenge(challenge_of(*VERSIONS))
    with pytest.raises(ProtocolError, match="wrong secret"):
        requester.receive_welcome(msgspec.msgpack.encode(Welcome(mac)))


def test_proof_sent_back_to_its_maker_is_worthless() -> None:
    # The attacker knows no secret, and answers a requester with what the requester itself said.
    requester = RequesterHandshake([NEW])
    proof = msgspec.msgpack.decode(requester.receive_challenge(challenge_of(*VERSIONS)), type=Proof)
    for mac in proof.macs:
        with pytest.raises(ProtocolError, match="wrong secret"):
            requester.receive_welcome(msgspec.msgpack.encode(Welcome(mac)))


def test_challenge_reflected_to_a_node_of_the_same_secret_does_not_admit() -> None:
    # The attacker is dialled by a node, and dials it back with the challenge that it was given there.
    node = NodeHandshake([NEW])
    challenge = msgspec.msgpack.decode(node.challenge(), type=Challenge)
    proof = Proof(VERSIONS[1], challenge.nonce, (hmac.digest(b"", challenge.nonce, "sha256"),))
    with pytest.raises(ProtocolError, match="wrong secret"):
        node.receive(msgspec.msgpack.encode(proof))


def test_node_proves_nothing_to_whoever_passes_its_own_challenge_on() -> None:
    # The attacker is dialled by a node, and dials it back at the same time.
    node, dialler = NodeHandshake([NEW], b"boot"), RequesterHandshake([NEW], b"boot")
    with pytest.raises(OwnChallenge):
        dialler.receive_challenge(node.challenge())


@pytest.mark.parametrize(("cut", "boot"), [(0, b""), (0, b"other"), (0, b"boot\0"), (1, b"boot"), (-1, b"oot")])
def test_own_challenge_in_disguise_is_worthless(cut: int, boot: bytes) -> None:
    node, dialler = NodeHandshake([NEW], b"boot"), RequesterHandshake([NEW], b"boot")
    challenge = msgspec.msgpack.decode(node.challenge(), type=Challenge)
    nonce = challenge.nonce[cut:] if cut >= 0 else challenge.nonce + b"b"
    disguised = msgspec.structs.replace(challenge, nonce=nonce, boot=boot)
    with pytest.raises(ProtocolError, match=r"wrong secret|no node"):
        node.receive(dialler.receive_challenge(msgspec.msgpack.encode(disguised)))


def test_recorded_proof_is_worthless_to_another_connection() -> None:
    node, requester = NodeHandshake([NEW]), RequesterHandshake([NEW])
    proof = requester.receive_challenge(node.challenge())
    node.receive(proof)
    with pytest.raises(ProtocolError, match="wrong secret"):
        NodeHandshake([NEW]).receive(proof)


def test_recorded_welcome_is_worthless_to_another_connection() -> None:
    node, requester = NodeHandshake([NEW]), RequesterHandshake([NEW])
    challenge = node.challenge()
    welcome = node.receive(requester.receive_challenge(challenge))
    second = RequesterHandshake([NEW])
    second.receive_challenge(challenge)
    with pytest.raises(ProtocolError, match="wrong secret"):
        second.receive_welcome(welcome)


@pytest.mark.parametrize(
    ("node_keys", "requester_keys"),
    [([NEW, OLD], [OLD]), ([OLD], [NEW, OLD]), ([NEW, OLD], [OLD, NEW]), ([OTHER, NEW, OLD], [OLD, OTHER])],
)
def test_rotation_splits_nothing_while_one_secret_is_common(
    node_keys: list[bytes], requester_keys: list[bytes]
) -> None:
    shake(NodeHandshake(node_keys), RequesterHandshake(requester_keys))


def test_welcome_is_made_with_the_secret_that_the_requester_proved() -> None:
    node, requester = NodeHandshake([NEW, OLD]), RequesterHandshake([OLD])
    shake(node, requester)
    with pytest.raises(ProtocolError, match="wrong secret"):
        shake(NodeHandshake([NEW, OTHER]), RequesterHandshake([OLD]))


def test_trusted_connection_needs_no_secret() -> None:
    shake(NodeHandshake(()), RequesterHandshake(()))
    with pytest.raises(ProtocolError, match="wrong secret"):
        shake(NodeHandshake([NEW]), RequesterHandshake(()))
    with pytest.raises(ProtocolError, match="wrong secret"):
        shake(NodeHandshake(()), RequesterHandshake([NEW]))


@pytest.mark.parametrize(("theirs", "chosen"), [((1, 1), 1), ((1, 9), 1), ((0, 1), 1)])
def test_newest_common_version_is_chosen(theirs: tuple[int, int], chosen: int) -> None:
    proof = RequesterHandshake([NEW]).receive_challenge(challenge_of(*theirs))
    assert msgspec.msgpack.decode(proof, type=Proof).version == chosen


def test_ranges_of_versions_that_overlap_meet_in_their_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "VERSIONS", (2, 4))
    node = NodeHandshake([NEW])
    monkeypatch.setattr(handshake, "VERSIONS", (3, 7))
    requester = RequesterHandshake([NEW])
    proof = requester.receive_challenge(node.challenge())
    assert msgspec.msgpack.decode(proof, type=Proof).version == 4
    requester.receive_welcome(node.receive(proof))


@pytest.mark.parametrize("theirs", [(2, 3), (-3, 0)])
def test_versions_with_nothing_in_common_are_refused_with_a_way_out(theirs: tuple[int, int]) -> None:
    message = f"it speaks protocol versions {theirs[0]} to {theirs[1]}, this side 1 to 1: upgrade the older one"
    with pytest.raises(ProtocolError, match=message):
        RequesterHandshake([NEW]).receive_challenge(challenge_of(*theirs))


@pytest.mark.parametrize("version", [-1, VERSIONS[1] + 1, VERSIONS[1] + 256])
def test_version_that_was_not_offered_is_refused(version: int) -> None:
    node, requester = NodeHandshake([NEW]), RequesterHandshake([NEW])
    proof = msgspec.msgpack.decode(requester.receive_challenge(node.challenge()), type=Proof)
    with pytest.raises(ProtocolError, match=f"version {version} was chosen, which was not offered"):
        node.receive(msgspec.msgpack.encode(Proof(version, proof.nonce, proof.macs)))


def test_offered_versions_cannot_be_changed_on_the_way() -> None:
    node, requester = NodeHandshake([NEW]), RequesterHandshake([NEW])
    challenge = msgspec.msgpack.decode(node.challenge(), type=Challenge)
    changed = Challenge(challenge.magic, challenge.oldest, challenge.newest + 1, challenge.nonce)
    with pytest.raises(ProtocolError, match="wrong secret"):
        node.receive(requester.receive_challenge(msgspec.msgpack.encode(changed)))


def test_something_else_that_speaks_msgpack_is_no_node() -> None:
    with pytest.raises(ProtocolError, match="is no node"):
        RequesterHandshake([NEW]).receive_challenge(msgspec.msgpack.encode(Challenge("redis", 1, 1, b"")))


@given(st.one_of(st.binary(max_size=HANDSHAKE_LIMIT), st.just(b"\x91" * HANDSHAKE_LIMIT)))
def test_random_bytes_are_refused_by_both_sides(payload: bytes) -> None:
    requester = RequesterHandshake([NEW])
    with pytest.raises(ProtocolError):
        requester.receive_challenge(payload)
    with pytest.raises(ProtocolError):
        requester.receive_welcome(payload)
    with pytest.raises(ProtocolError):
        NodeHandshake([NEW]).receive(payload)


def test_every_message_fits_the_limit_for_strangers() -> None:
    keys = derive_keys(["a", "b", "c", "d", "e"], "cluster", "link")
    node, requester = NodeHandshake(keys), RequesterHandshake(keys)
    challenge = node.challenge()
    proof = requester.receive_challenge(challenge)
    welcome = node.receive(proof)
    assert len(keys) == MAX_SECRETS
    assert max(map(len, (challenge, proof, welcome))) < HANDSHAKE_LIMIT


def test_keys_differ_by_secret_purpose_and_cluster() -> None:
    keys = [
        *derive_keys(["one", "two"], "a", "link"),
        *derive_keys(["one", "two"], "a", "channel"),
        *derive_keys(["one", "two"], "b", "link"),
    ]
    assert len(set(keys)) == len(keys) == 6
    assert {len(key) for key in keys} == {32}
    assert derive_keys(["one", "two"], "a", "link") == tuple(keys[:2])


def test_keys_are_those_of_rfc_5869() -> None:
    # HKDF with SHA-256, written out: extract, then one block of expand.
    extracted = hmac.digest(b"django-clusterstate", b"secret", "sha256")
    assert derive_keys(["secret"], "blue", "link") == (hmac.digest(extracted, b"clusterstate|link|blue\x01", "sha256"),)
