"""How the two ends of a connection agree on a version, prove that they know the secret, and say who they are. Pure.

    node     -> dialler   Challenge(magic, versions, nonce, boot id)
    dialler  -> node      Offers(version, one first message of the Noise handshake for each secret it knows)
    node     -> dialler   the index of the offer it took, and the second message of the Noise handshake
    both                  sealed records from then on

The Noise handshake (see `noise`) is bound to the challenge: a changed version, a message repeated on another connection
and one relayed from another node fail to decrypt. An offer begins with an id, an HMAC of the challenge under a key of
the secret, so the node finds the secret in common without a key exchange, and a stranger never causes one.

Inside the sealed messages each side says who it is, and the dialler which node it means. A node that isn't meant
answers with a `Verdict` that says so, and closes.

On a unix socket the kernel has already said who the other is: there is no offer, and nothing is sealed.
"""

import enum
import hmac
import os
from collections.abc import Sequence
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from ..exceptions import ProtocolError
from .keys import MAX_SECRETS, LinkKey
from .messages import DECODE_ERRORS
from .noise import Initiator, Opener, Responder, Sealer

MAGIC = "clusterstate"
VERSIONS = (2, 2)  # the oldest and the newest protocol version understood

_NONCE = 32
_ID = 8  # bytes of an offer that say which secret it was made with
_PROLOGUE = b"clusterstate\0seal"

T = TypeVar("T")
Session = tuple[Sealer, Opener]

Name = Annotated[str, Meta(max_length=100)]
Boot = Annotated[bytes, Meta(max_length=16)]
AddressText = Annotated[str, Meta(max_length=300)]


class Role(enum.IntEnum):
    """What the dialler is. Only nodes may send what nodes send each other."""

    REQUESTER = 0
    NODE = 1


class Challenge(msgspec.Struct, frozen=True, array_like=True):
    magic: str
    oldest: int
    newest: int
    nonce: bytes
    boot: bytes = b""


class Offers(msgspec.Struct, frozen=True, array_like=True):
    """`version` 0 says that there is none in common; then `oldest` and `newest` say what the dialler speaks."""

    version: int
    offers: Annotated[tuple[bytes, ...], Meta(max_length=MAX_SECRETS)] = ()
    oldest: int = VERSIONS[0]
    newest: int = VERSIONS[1]


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """What a dialler says in the first sealed message.

    `wanted_name` and `wanted_boot` are the node that it means, and the start of it; empty: whichever answers. `dialled`
    is the address that it dialled. A node adds its own name, boot id and advertised address.
    """

    role: Role = Role.REQUESTER
    wanted_name: Name = ""
    wanted_boot: Boot = b""
    dialled: AddressText = ""
    name: Name = ""
    boot: Boot = b""
    address: AddressText = ""


class Verdict(msgspec.Struct, frozen=True, array_like=True):
    """What a node says in the second sealed message: whether it is the one that is meant, who it is, and from which
    address it sees the dialler."""

    accepted: bool
    name: Name = ""
    boot: Boot = b""
    source: AddressText = ""


class OtherNode(ProtocolError):
    """Another node than the one that is meant answers. `name` and `boot` are those of the one that answers."""

    def __init__(self, text: str, name: str = "", boot: bytes = b"") -> None:
        super().__init__(text)
        self.name = name
        self.boot = boot


class OtherStart(OtherNode):
    """The node that is meant answers, but has been restarted since the dialler heard of it."""


class DialledItself(ProtocolError):
    """A node has dialled an address at which it answers itself, or at which somebody passes its own messages on."""


def common_version(oldest: int, newest: int) -> int:
    """The newest protocol version that we and someone who speaks these understand; 0 when there is none."""
    version = min(newest, VERSIONS[1])
    return version if version >= max(oldest, VERSIONS[0]) else 0


def incompatible(oldest: int, newest: int) -> str:
    return (
        f"it speaks protocol versions {oldest} to {newest}, this side {VERSIONS[0]} to {VERSIONS[1]}: "
        "upgrade the older one"
    )


def _decode(payload: bytes | memoryview, kind: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except DECODE_ERRORS as error:
        raise ProtocolError("the other side doesn't speak our protocol") from error


def _offer_id(key: LinkKey, challenge: bytes) -> bytes:
    return key.offers.mac(challenge)[:_ID]


def _prologue(version: int, challenge: bytes) -> bytes:
    return _PROLOGUE + bytes((version,)) + challenge


class NodeHandshake:
    """The node's side. `keys` empty: a unix socket.

    `name` and `boot` are the node's own; `source` is the address that the dialler comes from. After `receive`: `hello`
    is what the dialler said, `session` seals the connection (None on a unix socket), and with `refused` not empty the
    answer is to be sent, then the connection closed for that reason. `outdated`: the dialler means an earlier start of
    this node, as happens after each restart.
    """

    def __init__(self, keys: Sequence[LinkKey], name: str = "", boot: bytes = b"", source: str = "") -> None:
        self._keys = keys
        self._name = name
        self._boot = boot
        self._source = source
        self._challenge = msgspec.msgpack.encode(Challenge(MAGIC, *VERSIONS, os.urandom(_NONCE), boot))
        self.hello = Hello()
        self.session: Session | None = None
        self.refused = ""
        self.outdated = False

    def challenge(self) -> bytes:
        return self._challenge

    def receive(self, payload: bytes) -> bytes:
        """Takes the offers, gives the answer. Raises `ProtocolError` when the dialler gets none."""
        offers = _decode(payload, Offers)
        if not offers.version:
            raise ProtocolError(incompatible(offers.oldest, offers.newest))
        if not VERSIONS[0] <= offers.version <= VERSIONS[1]:
            raise ProtocolError(f"protocol version {offers.version} was chosen, which was not offered")
        if not self._keys:
            return msgspec.msgpack.encode(self._verdict())
        found = self._matching(offers.offers)
        if found is None:
            self.refused = "it has another secret, or belongs to another cluster"
            return b""
        index, key = found
        responder = Responder(key.psk, _prologue(offers.version, self._challenge))
        self.hello = _decode(responder.read(offers.offers[index][_ID:]), Hello)
        answer = bytes((index,)) + responder.write(msgspec.msgpack.encode(self._verdict()))
        self.session = responder.session()
        return answer

    def _matching(self, offers: Sequence[bytes]) -> tuple[int, LinkKey] | None:
        """The index of the first offer made with a secret of ours, and that secret's keys."""
        for key in self._keys:
            expected = _offer_id(key, self._challenge)
            for index, offer in enumerate(offers):
                if hmac.compare_digest(expected, offer[:_ID]):
                    return index, key
        return None

    def _verdict(self) -> Verdict:
        hello = self.hello
        if hello.wanted_name not in ("", self._name):
            self.refused = f"it means {hello.wanted_name} at {hello.dialled}, but this is {self._name}"
        elif hello.wanted_boot not in (b"", self._boot):
            self.refused = f"it means an earlier start of {self._name}"
            self.outdated = True
        return Verdict(not self.refused, self._name, self._boot, self._source)


class DiallerHandshake:
    """The dialler's side. `keys` empty: a unix socket. `hello` says who we are, and who is meant.

    After `receive_answer`: `verdict` is what the node said of itself, and `session` seals the connection.
    """

    def __init__(self, keys: Sequence[LinkKey], hello: Hello) -> None:
        self._keys = keys
        self._hello = hello
        self._initiators: list[Initiator] = []
        self.verdict = Verdict(accepted=False)
        self.session: Session | None = None
        self.farewell = b""  # after an error: what is to be sent before closing, so that the other side can say why

    def receive_challenge(self, payload: bytes | memoryview) -> bytes:
        """Takes the challenge, gives the offers.

        Raises `ProtocolError` when there is no common version.
        """
        verbatim = bytes(payload)
        challenge = _decode(verbatim, Challenge)
        if challenge.magic != MAGIC or len(challenge.nonce) != _NONCE:
            raise ProtocolError("what answers there is no node")
        version = common_version(challenge.oldest, challenge.newest)
        if not version:
            self.farewell = msgspec.msgpack.encode(Offers(0, (), *VERSIONS))
            raise ProtocolError(incompatible(challenge.oldest, challenge.newest))
        hello = msgspec.msgpack.encode(self._hello)
        offers = []
        for key in self._keys:
            initiator = Initiator(key.psk, _prologue(version, verbatim))
            offers.append(_offer_id(key, verbatim) + initiator.write(hello))
            self._initiators.append(initiator)
        # Nothing more: each byte of it is bound to the handshake, or makes it unreadable.
        return msgspec.msgpack.encode((version, offers))

    def receive_answer(self, payload: bytes | memoryview) -> None:
        """Takes the node's answer.

        Raises `ProtocolError` when it doesn't prove that the node knows one of the secrets, `DialledItself` when it is
        the answer of the dialler itself, `OtherNode` or `OtherStart` when it isn't that of the node that is meant.
        """
        if not self._keys:
            self.verdict = _decode(payload, Verdict)
            return
        if not payload:
            raise ProtocolError("it has another SECRET or SECRET_KEY, or belongs to another cluster")
        index = payload[0]
        if index >= len(self._initiators):
            raise ProtocolError("the other side doesn't speak our protocol")
        initiator = self._initiators[index]
        verdict = _decode(initiator.read(bytes(payload[1:])), Verdict)
        self.verdict = verdict
        hello = self._hello
        if hello.boot and verdict.boot == hello.boot:  # not by the challenge, in which anybody can write so
            raise DialledItself("it is this node itself")
        if not verdict.accepted or hello.wanted_name not in ("", verdict.name):
            name, boot = verdict.name, verdict.boot
            if hello.wanted_boot and name == hello.wanted_name:
                raise OtherStart(f"{name} at {hello.dialled} has been restarted", name, boot)
            wanted = hello.wanted_name or "another node"
            raise OtherNode(f"{wanted} was dialled at {hello.dialled}, but {name} answers there", name, boot)
        self.session = initiator.session()
