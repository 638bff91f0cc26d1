"""Keys derived from the project's secrets.

HKDF-SHA-256 (RFC 5869) with the salt `django-clusterstate`. Its info contains the purpose and the cluster's name, so a
key is valid for one purpose in one cluster only.
"""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

MAX_SECRETS = 4

_SALT = b"django-clusterstate"
_LENGTH = 32


class _Expanded(bytes):
    """Key material before it is split into keys. Its `repr()` shows nothing, since error reports show variables."""

    def __repr__(self) -> str:
        return "<keys>"


class SecretKey:
    """32 secret bytes, shown as `<SecretKey>`.

    Error reports show the variables of each function in a traceback. So keys are passed as such objects, never as
    bytes, and can't be pickled.
    """

    __slots__ = ("_bytes",)

    def __init__(self, material: bytes) -> None:
        self._bytes = material

    def __repr__(self) -> str:
        return "<SecretKey>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretKey) and hmac.compare_digest(self._bytes, other._bytes)

    def __hash__(self) -> int:
        return hash(self._bytes)

    def __reduce__(self) -> Any:
        raise TypeError("a key cannot be pickled or copied")

    def mac(self, message: bytes) -> bytes:
        """HMAC-SHA-256 of the message: 32 bytes."""
        return hmac.digest(self._bytes, message, "sha256")

    def expand(self, salt: "SecretKey", count: int) -> list["SecretKey"]:
        """`count` keys by HKDF-SHA-256 with this key as input keying material, and empty info."""
        expanded = _Expanded(HKDF(SHA256(), count * _LENGTH, salt._bytes, b"").derive(self._bytes))
        return [SecretKey(expanded[number * _LENGTH : (number + 1) * _LENGTH]) for number in range(count)]

    def cipher(self) -> AESGCM:
        """AES-256-GCM under this key."""
        return AESGCM(self._bytes)

    def hash_after(self, data: bytes) -> bytes:
        """SHA-256 of the data followed by this key."""
        return hashlib.sha256(data + self._bytes).digest()


@dataclass(frozen=True, slots=True)
class LinkKey:
    """The keys for connections from one secret: the pre-shared key of the Noise handshake, and the key of offer IDs."""

    psk: SecretKey
    offers: SecretKey


def _derive(secret: str | bytes, info: str) -> SecretKey:
    material = SecretKey(secret.encode() if isinstance(secret, str) else secret)
    return SecretKey(HKDF(SHA256(), _LENGTH, _SALT, info.encode()).derive(material._bytes))


def derive_link_keys(secrets: Sequence[str | bytes], cluster: str) -> tuple[LinkKey, ...]:
    """The keys for connections, one pair for each of the first four secrets."""
    return tuple(
        LinkKey(_derive(secret, f"clusterstate|seal2|{cluster}"), _derive(secret, f"clusterstate|seal2-id|{cluster}"))
        for secret in secrets[:MAX_SECRETS]
    )


def derive_heartbeat_keys(secrets: Sequence[str | bytes], cluster: str) -> tuple[SecretKey, ...]:
    """The keys that sign heartbeats, one for each of the first four secrets."""
    return tuple(_derive(secret, f"clusterstate|channel|{cluster}") for secret in secrets[:MAX_SECRETS])
