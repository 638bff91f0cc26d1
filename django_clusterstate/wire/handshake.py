"""The handshake: both ends of a connection agree on a protocol version, prove that they know the secret, and identify
themselves. Pure.

    node     -> dialer   Challenge(magic, versions, nonce, boot ID)
    dialer  -> node      Offers(version, one first Noise message for each secret that the dialer has)
    node     -> dialer   the index of the accepted offer, and the second Noise message
    both                  sealed records from then on

The Noise handshake (see `noise`) is bound to the challenge: a changed version, a message replayed on another connection
and one relayed from another node fail to decrypt. An offer begins with an ID, an HMAC of the challenge under a key of
the secret. By it the node finds the common secret before any key exchange, so nobody without the secret causes one.

The Noise messages carry a `Hello` of the dialer, which names itself and the node that it expects, and the node's
`Verdict`. A node that isn't the expected one says so in its verdict, and closes the connection.

On a unix socket the kernel identifies the other end: there are no offers, and nothing is sealed.
"""

import enum
import hmac
import os
from collections.abc import Sequence
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from ..core.membership.heartbeat import MAX_NAME, AddressText
from ..exceptions import ProtocolError
from .derived_keys import MAX_SECRETS, LinkKey
from .messages import DECODE_ERRORS
from .noise import Initiator, Opener, Responder, Sealer

MAGIC = "clusterstate"
VERSIONS = (2, 2)  # the oldest and the newest protocol version supported

_NONCE = 32
_ID = 8  # bytes of an offer that identify its secret
_PROLOGUE = b"clusterstate\0seal"

T = TypeVar("T")
Session = tuple[Sealer, Opener]

OptionalNodeName = Annotated[str, Meta(max_length=MAX_NAME)]
OptionalBootId = Annotated[bytes, Meta(max_length=16)]


class Role(enum.IntEnum):
    """The kind of dialer. Only a node may send `Deliver`, `Forward`, `Replicate` and `Execute`."""

    REQUESTER = 0
    NODE = 1


class Challenge(msgspec.Struct, frozen=True, array_like=True):
    """The node's first message: the protocol versions that it supports, a nonce of 32 bytes, and its boot ID."""

    magic: str
    oldest: int
    newest: int
    nonce: bytes
    boot: bytes = b""


class Offers(msgspec.Struct, frozen=True, array_like=True):
    """The dialer's reply. `version` 0: none in common; `oldest` and `newest` are the versions of the dialer."""

    version: int
    offers: Annotated[tuple[bytes, ...], Meta(max_length=MAX_SECRETS)] = ()
    oldest: int = VERSIONS[0]
    newest: int = VERSIONS[1]


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """The payload of the first Noise message, from the dialer.

    `expected_name` and `expected_boot` are the name and boot ID of the expected node; empty: any. `dialed` is the
    dialed address. If the dialer is a node, `name`, `boot` and `address` (advertised) are its own.
    """

    role: Role = Role.REQUESTER
    expected_name: OptionalNodeName = ""
    expected_boot: OptionalBootId = b""
    dialed: AddressText = ""
    name: OptionalNodeName = ""
    boot: OptionalBootId = b""
    address: AddressText = ""


class Verdict(msgspec.Struct, frozen=True, array_like=True):
    """The payload of the second Noise message, from the node: whether it is the expected node, its name and boot ID,
    and the address from which the dialer's connection comes."""

    accepted: bool
    name: OptionalNodeName = ""
    boot: OptionalBootId = b""
    source: AddressText = ""


class OtherNode(ProtocolError):
    """The connection leads to a node other than the expected one. `name` and `boot` are those of that node."""

    def __init__(self, text: str, name: str = "", boot: bytes = b"") -> None:
        super().__init__(text)
        self.name = name
        self.boot = boot


class OtherInstance(OtherNode):
    """The expected node was restarted: its boot ID isn't the expected one."""


class DialedItself(ProtocolError):
    """A node has dialed an address that leads back to itself, directly or through a relay."""


def common_version(oldest: int, newest: int) -> int:
    """The newest protocol version shared with a peer that supports `oldest` to `newest`; 0 if there is none."""
    version = min(newest, VERSIONS[1])
    return version if version >= max(oldest, VERSIONS[0]) else 0


def incompatible(oldest: int, newest: int) -> str:
    """The error message for a peer without a common protocol version."""
    return (
        f"it speaks protocol versions {oldest} to {newest}, this side {VERSIONS[0]} to {VERSIONS[1]}: "
        "upgrade the older one"
    )


def _decode(payload: bytes | memoryview, kind: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except DECODE_ERRORS as error:
        raise ProtocolError("it does not speak the cluster's protocol") from error


def _offer_id(key: LinkKey, challenge: bytes) -> bytes:
    return key.offers.mac(challenge)[:_ID]


def _prologue(version: int, challenge: bytes) -> bytes:
    return _PROLOGUE + bytes((version,)) + challenge


class NodeHandshake:
    """The node's side of the handshake. `keys` are empty on a unix socket.

    `name` and `boot` are the node's own, `source` is the dialer's address. `challenge` is the payload of the first
    message. After `receive()`, `hello` is the dialer's and `session` seals the connection (None on a unix socket). If
    `refused` is set, it is the reason to close the connection once the answer is sent. `outdated`: the dialer expects
    an earlier instance of this node, as requesters do for a moment after a restart.
    """

    def __init__(self, keys: Sequence[LinkKey], name: str = "", boot: bytes = b"", source: str = "") -> None:
        self._keys = keys
        self._name = name
        self._boot = boot
        self._source = source
        self.challenge = msgspec.msgpack.encode(Challenge(MAGIC, *VERSIONS, os.urandom(_NONCE), boot))
        self.hello = Hello()
        self.session: Session | None = None
        self.refused = ""
        self.outdated = False

    def receive(self, payload: bytes) -> bytes:
        """Takes the payload with the offers, returns the answer. Raises `ProtocolError` when there is none to send."""
        offers = _decode(payload, Offers)
        if not offers.version:
            raise ProtocolError(incompatible(offers.oldest, offers.newest))
        if not VERSIONS[0] <= offers.version <= VERSIONS[1]:
            raise ProtocolError(f"protocol version {offers.version} was chosen, which was not offered")
        if not self._keys:
            return msgspec.msgpack.encode(self._verdict())
        found = self._matching(offers.offers)
        if found is None:
            self.refused = "it uses a different secret, or belongs to a different cluster"
            return b""
        index, key = found
        responder = Responder(key.psk, _prologue(offers.version, self.challenge))
        self.hello = _decode(responder.read(offers.offers[index][_ID:]), Hello)
        answer = bytes((index,)) + responder.write(msgspec.msgpack.encode(self._verdict()))
        self.session = responder.session()
        return answer

    def _matching(self, offers: Sequence[bytes]) -> tuple[int, LinkKey] | None:
        """The index of the first offer made with one of this node's secrets, and the keys of that secret."""
        for key in self._keys:
            expected = _offer_id(key, self.challenge)
            for index, offer in enumerate(offers):
                if hmac.compare_digest(expected, offer[:_ID]):
                    return index, key
        return None

    def _verdict(self) -> Verdict:
        hello = self.hello
        if hello.expected_name not in ("", self._name):
            self.refused = f"expected node {hello.expected_name} at {hello.dialed}, but this is node {self._name}"
        elif hello.expected_boot not in (b"", self._boot):
            self.refused = f"it expects an earlier instance of {self._name}"
            self.outdated = True
        return Verdict(not self.refused, self._name, self._boot, self._source)


class DialerHandshake:
    """The dialer's side of the handshake. `keys` are empty on a unix socket.

    `hello` names the dialer and the expected node. After `receive_answer()`, `verdict` is the node's and `session`
    seals the connection (None on a unix socket). After an error, `last_message` is sent before closing if it isn't
    empty, so that the node can log the reason.
    """

    def __init__(self, keys: Sequence[LinkKey], hello: Hello) -> None:
        self._keys = keys
        self._hello = hello
        self._initiators: list[Initiator] = []
        self.verdict = Verdict(accepted=False)
        self.session: Session | None = None
        self.last_message = b""

    def receive_challenge(self, payload: bytes | memoryview) -> bytes:
        """Takes the payload with the challenge, returns the offers.

        Raises `ProtocolError` if the other side isn't a node, or has no version in common.
        """
        verbatim = bytes(payload)
        challenge = _decode(verbatim, Challenge)
        if challenge.magic != MAGIC or len(challenge.nonce) != _NONCE:
            raise ProtocolError("the process at this address is not a clusterstate node")
        version = common_version(challenge.oldest, challenge.newest)
        if not version:
            self.last_message = msgspec.msgpack.encode(Offers(0, (), *VERSIONS))
            raise ProtocolError(incompatible(challenge.oldest, challenge.newest))
        hello = msgspec.msgpack.encode(self._hello)
        offers = []
        for key in self._keys:
            initiator = Initiator(key.psk, _prologue(version, verbatim))
            offers.append(_offer_id(key, verbatim) + initiator.write(hello))
            self._initiators.append(initiator)
        # Without `oldest` and `newest`: nothing is sent that isn't authenticated by the handshake.
        return msgspec.msgpack.encode((version, offers))

    def receive_answer(self, payload: bytes | memoryview) -> None:
        """Takes the payload with the node's answer.

        Raises `ProtocolError` if the answer doesn't prove that the node has one of the secrets, `DialedItself` if it
        comes from the dialer itself, `OtherNode` or `OtherInstance` if it isn't from the expected node.
        """
        if not self._keys:
            self.verdict = _decode(payload, Verdict)
            return
        if not payload:
            raise ProtocolError("it uses a different SECRET or SECRET_KEY, or belongs to a different cluster")
        index = payload[0]
        if index >= len(self._initiators):
            raise ProtocolError("it does not speak the cluster's protocol")
        initiator = self._initiators[index]
        verdict = _decode(initiator.read(bytes(payload[1:])), Verdict)
        self.verdict = verdict
        self._check_identity(verdict)
        self.session = initiator.session()

    def _check_identity(self, verdict: Verdict) -> None:
        hello, name, boot = self._hello, verdict.name, verdict.boot
        if hello.boot and boot == hello.boot:  # the boot ID in the challenge isn't authenticated
            raise DialedItself("the address leads to this node itself")
        if verdict.accepted and hello.expected_name in ("", name):
            return
        if hello.expected_boot and name == hello.expected_name:
            raise OtherInstance(f"{name} at {hello.dialed} has been restarted", name, boot)
        expected = hello.expected_name or "a different node"
        raise OtherNode(f"expected {expected} at {hello.dialed}, but {name} answers there", name, boot)
