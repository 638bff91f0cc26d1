"""How the two ends of a connection agree on a version and prove to each other that they know the secret. Pure.

    node       -> requester   Challenge(magic, versions, nonce, boot id)
    requester  -> node        Proof(version, nonce, one MAC for each secret it knows)
    node       -> requester   Welcome(MAC)

A MAC is HMAC-SHA-256 over the role that makes it, the versions, both nonces and the node's boot id: a proof sent back
to its maker is worthless, and so is a recorded one. A node that dials knows its own challenge by the boot id, and
proves nothing to whoever passes it on. Each side proves itself before the other decodes anything else. The requester
offers a proof for every secret it knows (the newest first), so that a rotation of the secret splits nothing.

On a unix socket the kernel has already said who the other is, and the MACs are left out.
"""

import hmac
import os
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from ..exceptions import ProtocolError
from .messages import DECODE_ERRORS

MAGIC = "clusterstate"
VERSIONS = (1, 1)  # the oldest and the newest protocol version understood
MAX_SECRETS = 4

_NONCE = 32

T = TypeVar("T")


class OwnChallenge(ProtocolError):
    """Whoever answers there is ourselves, or passes on what we say."""


class Challenge(msgspec.Struct, frozen=True, array_like=True):
    magic: str
    oldest: int
    newest: int
    nonce: bytes
    boot: bytes = b""


class Proof(msgspec.Struct, frozen=True, array_like=True):
    """`version` 0 says that there is none in common; then `oldest` and `newest` say what the requester speaks."""

    version: int
    nonce: bytes
    macs: tuple[bytes, ...]
    oldest: int = VERSIONS[0]
    newest: int = VERSIONS[1]


class Welcome(msgspec.Struct, frozen=True, array_like=True):
    mac: bytes


def common_version(oldest: int, newest: int) -> int:
    """The newest protocol version that we and someone who speaks these understand; 0 when there is none."""
    version = min(newest, VERSIONS[1])
    return version if version >= max(oldest, VERSIONS[0]) else 0


def incompatible(oldest: int, newest: int) -> str:
    return (
        f"it speaks protocol versions {oldest} to {newest}, this side {VERSIONS[0]} to {VERSIONS[1]}: "
        "upgrade the older one"
    )


def derive_keys(secrets: Sequence[str | bytes], cluster: str, purpose: str) -> tuple[bytes, ...]:
    """Keys for one purpose, one for each secret: HKDF-SHA-256 (RFC 5869) with the cluster and purpose as info,
    so that neither clusters nor purposes can use each other's."""
    info = f"clusterstate|{purpose}|{cluster}".encode()
    keys = []
    for secret in secrets[:MAX_SECRETS]:
        extracted = hmac.digest(
            b"django-clusterstate", secret.encode() if isinstance(secret, str) else secret, "sha256"
        )
        keys.append(hmac.digest(extracted, info + b"\x01", "sha256"))
    return tuple(keys)


def _mac(key: bytes, role: bytes, challenge: Challenge, version: int, nonce: bytes) -> bytes:
    versions = bytes((challenge.oldest & 255, challenge.newest & 255, version & 255))
    return hmac.digest(key, role + versions + challenge.nonce + nonce + challenge.boot, "sha256")


def _decode(payload: bytes | memoryview, kind: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except DECODE_ERRORS as error:
        raise ProtocolError("the other side doesn't speak our protocol") from error


class NodeHandshake:
    """The node's side. `keys` empty: the connection is trusted already. `boot` is that of the node."""

    def __init__(self, keys: Sequence[bytes], boot: bytes = b"") -> None:
        self._keys = keys
        self._challenge = Challenge(MAGIC, *VERSIONS, os.urandom(_NONCE), boot)

    def challenge(self) -> bytes:
        return msgspec.msgpack.encode(self._challenge)

    def receive(self, payload: bytes) -> bytes:
        """Takes the proof, gives the welcome. Raises `ProtocolError` when it proves nothing."""
        proof = _decode(payload, Proof)
        if not proof.version:
            raise ProtocolError(incompatible(proof.oldest, proof.newest))
        if not self._challenge.oldest <= proof.version <= self._challenge.newest:
            raise ProtocolError(f"protocol version {proof.version} was chosen, which was not offered")
        if not self._keys:
            return msgspec.msgpack.encode(Welcome(b""))
        if len(proof.nonce) == _NONCE:
            for key in self._keys:
                expected = _mac(key, b"requester", self._challenge, proof.version, proof.nonce)
                if any(hmac.compare_digest(expected, mac) for mac in proof.macs[:MAX_SECRETS]):
                    mac = _mac(key, b"node", self._challenge, proof.version, proof.nonce)
                    return msgspec.msgpack.encode(Welcome(mac))
        raise ProtocolError("wrong secret")


class RequesterHandshake:
    """The side that dialled. `keys` empty: the connection is trusted already. `boot` is its own if it is a node."""

    def __init__(self, keys: Sequence[bytes], boot: bytes = b"") -> None:
        self._keys = keys
        self._boot = boot
        self._nonce = os.urandom(_NONCE)
        self._expected: list[bytes] = []
        self.farewell = b""  # after an error: what is to be sent before closing, so that the other side can say why

    def receive_challenge(self, payload: bytes | memoryview) -> bytes:
        """Takes the challenge, gives the proof. Raises `ProtocolError` when there is no common version, `OwnChallenge`
        when it is our own."""
        challenge = _decode(payload, Challenge)
        if challenge.magic != MAGIC or len(challenge.nonce) != _NONCE:
            raise ProtocolError("what answers there is no node")
        if self._boot and challenge.boot == self._boot:
            raise OwnChallenge("it is this node itself")
        version = common_version(challenge.oldest, challenge.newest)
        if not version:
            self.farewell = msgspec.msgpack.encode(Proof(0, b"", (), *VERSIONS))
            raise ProtocolError(incompatible(challenge.oldest, challenge.newest))
        self._expected = [_mac(key, b"node", challenge, version, self._nonce) for key in self._keys]
        macs = tuple(_mac(key, b"requester", challenge, version, self._nonce) for key in self._keys)
        return msgspec.msgpack.encode(Proof(version, self._nonce, macs))

    def receive_welcome(self, payload: bytes | memoryview) -> None:
        """Raises `ProtocolError` when the node can't prove that it knows one of the secrets."""
        welcome = _decode(payload, Welcome)
        if self._keys and not any(hmac.compare_digest(mac, welcome.mac) for mac in self._expected):
            raise ProtocolError("wrong secret")
