"""The Noise handshake against a published vector and another implementation; records against every kind of change."""

import os
import random
import warnings

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from noise.connection import Keypair, NoiseConnection

from django_clusterstate.exceptions import ProtocolError
from django_clusterstate.wire import noise
from django_clusterstate.wire.derived_keys import SecretKey
from django_clusterstate.wire.framing import HEADER, frame
from django_clusterstate.wire.noise import (
    MAX_PLAIN,
    TAG,
    Data,
    Forked,
    Initiator,
    Opener,
    Responder,
    Sealer,
)
from tests.forks import FORKS, in_child_of

PSK = b"p" * 32
KEY = SecretKey(b"k" * 32)


def pair() -> tuple[Sealer, Opener]:
    return Sealer(KEY), Opener(KEY)


def shaken() -> tuple[tuple[Sealer, Opener], tuple[Sealer, Opener]]:
    """The sessions of both sides."""
    initiator, responder = Initiator(SecretKey(PSK), b"prologue"), Responder(SecretKey(PSK), b"prologue")
    responder.read(initiator.write(b"from the initiator"))
    initiator.read(responder.write(b"from the responder"))
    return initiator.session(), responder.session()


# -- the handshake ------------------------------------------------------------------------------------------------


def test_published_vector_is_reproduced_in_both_directions() -> None:
    """Cacophony's vectors, as in snow's tests/vectors/cacophony.txt: `Noise_NNpsk0_25519_AESGCM_SHA256`. Their
    `handshake_hash` is that after the first of the two messages."""
    psk = SecretKey(bytes.fromhex("54686973206973206d7920417573747269616e20706572737065637469766521"))
    prologue = bytes.fromhex("4a6f686e2047616c74")
    initiator, responder = Initiator(psk, prologue), Responder(psk, prologue)
    initiator._private = X25519PrivateKey.from_private_bytes(
        bytes.fromhex("893e28b9dc6ca8d611ab664754b8ceb7bac5117349a4439a6b0569da977c464a")
    )
    responder._private = X25519PrivateKey.from_private_bytes(
        bytes.fromhex("bbdb4cdbd309f1a1f2e1456967fe288cadd6f712d65dc7b7793d5e63da6b375b")
    )
    payloads = [
        bytes.fromhex(text)
        for text in (
            "4c756477696720766f6e204d69736573",
            "4d757272617920526f746862617264",
            "462e20412e20486179656b",
            "4361726c204d656e676572",
            "4a65616e2d426170746973746520536179",
            "457567656e2042f6686d20766f6e2042617765726b",
        )
    ]
    first = initiator.write(payloads[0])
    assert first.hex() == (
        "ca35def5ae56cec33dc2036731ab14896bc4c75dbb07a61f879f8e3afa4c79447c37a89fc17813788d30df2d59501d6066f5f8aecc3406bb"
        "d9829f2d24a531b1"
    )
    assert responder.read(first) == payloads[0]
    for side in (initiator, responder):
        assert side.hash.hex() == "29d92c13649b5d28b41afd8dc5d6ce7f46df2348e4061c09f1c354b593e13add"
    second = responder.write(payloads[1])
    assert second.hex() == (
        "95ebc60d2b1fa672c1f46a8aa265ef51bfe38e7ccb39ec5be34069f1448088432f29d79368ef9de4e1ae7a362fb05bf0ad668e026bf57145"
        "54497b3a720461"
    )
    assert initiator.read(second) == payloads[1]
    assert initiator.hash == responder.hash
    ends = [initiator.session(), responder.session()]
    for payload, sealed in zip(
        payloads[2:],
        (
            "7c01e898a6201f36aecee532e29cd0b7f8ffa29d3366ad0dce39a6",
            "a9ff535aace3db6a1da1a7fb00fe2de2622bb373abad9fb42c00e0",
            "6cfc49a3e65472edc2d0152abe5ce950170a8a47c959f30bd48b5f0aacf29adbfd",
            "9bc86e6d974ed21ba04604a94aa68de21677eb409ead070c0cd569b069ee19ba142aa4c1a9",
        ),
        strict=True,
    ):
        (sealer, _), (_, opener) = ends
        record = sealer.seal(payload)
        assert record[HEADER:].hex() == sealed
        assert opener.open(record[HEADER:]) == payload
        ends.reverse()


@pytest.mark.parametrize("ours_dials", [True, False])
def test_handshake_and_records_interoperate_with_another_implementation(ours_dials: bool) -> None:
    other = NoiseConnection.from_name(b"Noise_NNpsk0_25519_AESGCM_SHA256")
    other.set_prologue(b"prologue")
    other.set_psks(psk=PSK)
    if ours_dials:
        initiator = Initiator(SecretKey(PSK), b"prologue")
        other.set_as_responder()
        other.start_handshake()
        assert other.read_message(initiator.write(b"hello")) == b"hello"
        assert initiator.read(bytes(other.write_message(b"verdict"))) == b"verdict"
        sealer, opener = initiator.session()
    else:
        responder = Responder(SecretKey(PSK), b"prologue")
        other.set_as_initiator()
        other.start_handshake()
        assert responder.read(bytes(other.write_message(b"hello"))) == b"hello"
        assert other.read_message(responder.write(b"verdict")) == b"verdict"
        sealer, opener = responder.session()
    for number in range(3):
        text = b"%d" % number
        assert other.decrypt(sealer.seal(text)[HEADER:]) == text
        assert opener.open(bytes(other.encrypt(text))) == text


def test_rekey_agrees_with_another_implementation() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of keys that aren't random
        other = NoiseConnection.from_name(b"Noise_NNpsk0_25519_AESGCM_SHA256")
        other.set_keypair_from_private_bytes(Keypair.EPHEMERAL, bytes(32))
        other.set_psks(psk=PSK)
        other.set_as_initiator()
        other.start_handshake()
        responder = Responder(SecretKey(PSK), b"")
        responder.read(bytes(other.write_message(b"")))
        other.read_message(responder.write(b""))
    sealer, opener = responder.session()
    sealer._rekey_at = opener._rekey_at = 2
    for text in (b"one", b"two", b"three", b"four"):
        if text == b"three":
            other.rekey_inbound_cipher()
            other.rekey_outbound_cipher()
        assert other.decrypt(sealer.seal(text)[HEADER:]) == text
        assert opener.open(bytes(other.encrypt(text))) == text


@pytest.mark.parametrize(
    ("psk", "prologue"), [(b"q" * 32, b"prologue"), (PSK, b"another"), (PSK, b"")], ids=["psk", "prologue", "none"]
)
def test_another_key_or_prologue_fails_at_the_first_message(psk: bytes, prologue: bytes) -> None:
    with pytest.raises(ProtocolError, match="modified, or made with a different secret"):
        Responder(SecretKey(psk), prologue).read(Initiator(SecretKey(PSK), b"prologue").write(b"hello"))


def test_each_altered_bit_of_both_handshake_messages_is_detected() -> None:
    initiator = Initiator(SecretKey(PSK), b"prologue")
    first = initiator.write(b"hello")
    responder = Responder(SecretKey(PSK), b"prologue")
    responder.read(first)
    second = responder.write(b"verdict")
    for bit in range(len(first) * 8):
        with pytest.raises(ProtocolError):
            Responder(SecretKey(PSK), b"prologue").read(flipped(first, bit))
    for bit in range(len(second) * 8):
        reader = Initiator(SecretKey(PSK), b"prologue")
        reader.__dict__.update(initiator.__dict__)
        with pytest.raises(ProtocolError):
            reader.read(flipped(second, bit))


def test_point_of_low_order_is_refused() -> None:
    class Zero(Initiator):
        @property
        def public(self) -> bytes:
            return bytes(32)

    responder = Responder(SecretKey(PSK), b"")
    assert responder.read(Zero(SecretKey(PSK), b"").write(b"hello")) == b"hello"
    with pytest.raises(ProtocolError, match="is invalid"):
        responder.write(b"verdict")


@pytest.mark.parametrize("length", [0, 31, 32, 47])
def test_handshake_message_that_is_too_short_is_refused(length: int) -> None:
    with pytest.raises(ProtocolError, match="too short"):
        Responder(SecretKey(PSK), b"").read(bytes(length))
    initiator = Initiator(SecretKey(PSK), b"")
    initiator.write(b"")
    with pytest.raises(ProtocolError, match="too short"):
        initiator.read(bytes(length))


def test_sessions_of_two_handshakes_have_nothing_in_common() -> None:
    (sealer, _), _ = shaken()
    _, (_, opener) = shaken()
    with pytest.raises(ProtocolError):
        opener.open(sealer.seal(b"x")[HEADER:])


# -- records ------------------------------------------------------------------------------------------------------


def flipped(message: Data, bit: int) -> bytes:
    changed = bytearray(message)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@given(st.lists(st.binary(max_size=300), max_size=20), st.randoms(use_true_random=False))
def test_records_survive_any_split_of_the_stream(messages: list[bytes], source: random.Random) -> None:
    sealer, opener = pair()
    stream = b"".join(sealer.seal(message) for message in messages)
    out, start = b"", 0
    while start < len(stream):
        stop = start + source.randint(1, 40)
        out += opener.feed(stream[start:stop])
        start = stop
    assert out == b"".join(messages)


@pytest.mark.parametrize("size", [0, 1, MAX_PLAIN - 1, MAX_PLAIN, MAX_PLAIN + 1, 3 * MAX_PLAIN + 5])
def test_message_of_any_length_is_sealed_in_full_records(size: int) -> None:
    sealer, opener = pair()
    message = os.urandom(size)
    sealed = sealer.seal(message)
    assert len(sealed) == size + max(1, -(-size // MAX_PLAIN)) * (HEADER + TAG)
    assert opener.feed(bytes(sealed)) == message


def test_each_altered_bit_of_a_record_is_detected() -> None:
    sealed = pair()[0].seal(b"what nobody may alter")
    for bit in range(len(sealed) * 8):
        opener = Opener(KEY)
        try:
            plain = opener.feed(flipped(sealed, bit))
        except ProtocolError:
            continue
        assert plain == b""  # a length that is greater now: the rest never comes


def test_repeated_missing_and_swapped_records_are_detected() -> None:
    sealer, _ = pair()
    one, two, three = (bytes(sealer.seal(text)) for text in (b"one", b"two", b"three"))
    for stream in (one + one, two, two + one, one + three):
        with pytest.raises(ProtocolError, match="modified, replayed or lost"):
            Opener(KEY).feed(stream)


def test_record_reflected_to_its_sender_is_refused() -> None:
    (sealer, opener), _ = shaken()
    with pytest.raises(ProtocolError):
        opener.feed(bytes(sealer.seal(b"x")))


@pytest.mark.parametrize("size", [65536, 2**32 - 1])
def test_record_that_is_too_long_is_refused_before_its_bytes_arrive(size: int) -> None:
    with pytest.raises(ProtocolError, match="more than 65,535"):
        Opener(KEY).feed(size.to_bytes(4, "big"))


@pytest.mark.parametrize("size", [0, TAG - 1])
def test_record_that_is_too_short_is_refused(size: int) -> None:
    with pytest.raises(ProtocolError, match="modified, replayed or lost"):
        Opener(KEY).feed(frame(bytes(size)))


def test_both_sides_rekey_after_the_same_number_of_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "REKEY_EVERY", 3)
    sealer, opener = pair()
    first = sealer._cipher
    for number in range(10):
        assert opener.feed(bytes(sealer.seal(b"%d" % number))) == b"%d" % number
    assert sealer._cipher is not first
    sealer, _ = pair()
    sealed = [sealer.seal(b"x" * MAX_PLAIN * 2) for _ in range(2)]
    assert Opener(KEY).feed(b"".join(sealed)) == b"x" * MAX_PLAIN * 4


def test_forked_child_cannot_seal_also_after_a_fork_in_c() -> None:
    sealer, _ = pair()
    sealer.seal(b"the parent's")

    def child() -> bool:
        with pytest.raises(Forked):
            sealer.seal(b"the child's")
        return True

    assert in_child_of(FORKS["c"])(child)()
    sealer.seal(b"the parent's again")
