"""The handshake `Noise_NNpsk0_25519_AESGCM_SHA256` and the sealed records that follow it. Pure: bytes in and out.

The Noise Protocol Framework, revision 34 (https://noiseprotocol.org/noise.html): two messages with an ephemeral X25519
key each, and a pre-shared key that is mixed in first. Only holders of that key can write or read the messages. If the
key leaks later, recorded traffic stays unreadable (forward secrecy). The primitives are those of `cryptography`.
"""

import hashlib
import math
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ..exceptions import ProtocolError
from .derived_keys import SecretKey
from .framing import HEADER, Deframer, pack_size, size_at

TAG = 16  # bytes that encryption adds
MAX_MESSAGE = 65535  # bytes of a Noise message, so of a record without its header
MAX_PLAIN = MAX_MESSAGE - TAG  # bytes in one record
PUBLIC_KEY = 32  # bytes

_PROTOCOL = b"Noise_NNpsk0_25519_AESGCM_SHA256"
REKEY_EVERY = 1 << 20  # records: 2**32 blocks of AES at most under one key, where GCM allows far more (RFC 8446, 5.5)
_FIRST_NONCE = bytes(12)
_LAST_NONCE = bytes(4) + b"\xff" * 8  # the nonce that Noise reserves for REKEY

_ALTERED = "an encrypted record was modified, replayed or lost in transit"
_pid = os.getpid

Data = bytes | bytearray

# The first key would import modules under a lock, on which a child that is forked meanwhile waits forever.
X25519PrivateKey.generate()


class Forked(OSError):
    """The connection belongs to the parent process. Using it in a forked child would repeat a nonce."""


class _CipherState:
    """Noise's CipherState for one direction of a connection. The nonce counts records; `REKEY` after `REKEY_EVERY`."""

    __slots__ = ("_cipher", "_count", "_rekey_at")

    def __init__(self, key: SecretKey) -> None:
        self._cipher = key.cipher()
        self._count = 0
        self._rekey_at = REKEY_EVERY

    def _advance(self) -> None:
        self._count += 1
        if self._count == self._rekey_at:
            self._cipher = AESGCM(self._cipher.encrypt(_LAST_NONCE, bytes(32), None)[:32])
            self._rekey_at += REKEY_EVERY


class Sealer(_CipherState):
    """Encrypts one direction of a connection into records: a length of four bytes, big-endian, the ciphertext and its
    tag."""

    __slots__ = ("_owner",)

    def __init__(self, key: SecretKey) -> None:
        super().__init__(key)
        self._owner = _pid()

    def seal(self, data: bytes) -> Data:
        """One record, or several for more than `MAX_PLAIN` bytes. Raises `Forked` in a forked child, also after a fork
        in C."""
        if _pid() != self._owner:
            raise Forked("the connection belongs to the parent process of this forked child")
        size = len(data)
        if size > MAX_PLAIN:
            return self._seal_long(memoryview(data))
        sealed = pack_size(size + TAG) + self._cipher.encrypt(self._count.to_bytes(12, "big"), data, None)
        self._advance()
        return sealed

    def _seal_long(self, data: memoryview) -> bytearray:
        """Encrypts into one buffer, since joining long records would copy them once more."""
        records = math.ceil(len(data) / MAX_PLAIN)
        sealed = bytearray(len(data) + records * (HEADER + TAG))
        view = memoryview(sealed)
        start = 0
        for first in range(0, len(data), MAX_PLAIN):
            part = data[first : first + MAX_PLAIN]
            stop = start + HEADER + len(part) + TAG
            view[start : start + HEADER] = pack_size(len(part) + TAG)
            self._cipher.encrypt_into(self._count.to_bytes(12, "big"), part, None, view[start + HEADER : stop])
            self._advance()
            start = stop
        return sealed


class Opener(_CipherState):
    """Decrypts one direction of a connection. After an error the connection must be closed."""

    __slots__ = ("_records",)

    def __init__(self, key: SecretKey) -> None:
        super().__init__(key)
        self._records = Deframer(MAX_MESSAGE)

    def open(self, sealed: Data | memoryview) -> bytes:
        """The plaintext of one record, which is passed without its length. Raises `ProtocolError` if it was altered or
        isn't the next record."""
        try:
            plain = self._cipher.decrypt(self._count.to_bytes(12, "big"), sealed, None)
        except InvalidTag:
            raise ProtocolError(_ALTERED) from None
        self._advance()
        return plain

    def open_into(self, sealed: memoryview, into: memoryview) -> int:
        """Decrypts one record into a buffer of the size of the plaintext. Returns that size. Raises `ProtocolError` if
        the record was altered or isn't the next one."""
        try:
            count = self._cipher.decrypt_into(self._count.to_bytes(12, "big"), sealed, None, into)
        except InvalidTag:
            raise ProtocolError(_ALTERED) from None
        self._advance()
        return count

    def feed(self, data: bytes) -> bytes:
        """The plaintext of all records that these bytes complete. An incomplete record is buffered.

        Raises `ProtocolError` if a record was altered or isn't the next one, and as soon as a header announces an
        invalid length.
        """
        records = self._records.feed(data)
        if len(records) == 1:  # nearly always
            return self.open(records[0])
        return b"".join(map(self.open, records))


def record_size(header: bytes | memoryview) -> int:
    """The length in a record's header of four bytes. Raises `ProtocolError` if it is invalid."""
    size: int = size_at(header)[0]
    if not TAG <= size <= MAX_MESSAGE:
        raise ProtocolError(f"an encrypted record of {size:,} bytes, outside {TAG} to {MAX_MESSAGE:,}")
    return size


class _HandshakeState:
    """Noise's SymmetricState, and the tokens that both sides process."""

    def __init__(self, psk: SecretKey, prologue: bytes) -> None:
        self.hash = _PROTOCOL  # not hashed, since the name has exactly HASHLEN bytes
        self._chaining = SecretKey(_PROTOCOL)
        self._private = X25519PrivateKey.generate()
        self._mix_hash(prologue)
        self._mix_key_and_hash(psk)

    @property
    def public(self) -> bytes:
        return self._private.public_key().public_bytes_raw()

    def _mix_hash(self, data: bytes) -> None:
        self.hash = hashlib.sha256(self.hash + data).digest()

    def _mix_key_and_hash(self, psk: SecretKey) -> None:
        self._chaining, hashed, key = psk.expand(self._chaining, 3)
        self.hash = hashed.hash_after(self.hash)
        self._cipher = key.cipher()

    def _mix_key(self, material: SecretKey) -> None:
        self._chaining, key = material.expand(self._chaining, 2)
        self._cipher = key.cipher()

    def _mix_public(self, public: bytes) -> None:
        """The `e` token. In a handshake with a pre-shared key, it also calls MixKey."""
        self._mix_hash(public)
        self._mix_key(SecretKey(public))

    def _mix_shared(self, public: bytes) -> None:
        """The `ee` token. Raises `ProtocolError` for a point of low order, whose shared secret is known to anyone."""
        try:
            shared = SecretKey(self._private.exchange(X25519PublicKey.from_public_bytes(public)))
        except ValueError as error:
            raise ProtocolError("a public key in the handshake is invalid") from error
        self._mix_key(shared)

    def _encrypt(self, plain: bytes) -> bytes:
        # The first nonce, since each message of this handshake mixes in a key before its only payload.
        sealed = self._cipher.encrypt(_FIRST_NONCE, plain, self.hash)
        self._mix_hash(sealed)
        return sealed

    def _decrypt(self, sealed: bytes) -> bytes:
        try:
            plain = self._cipher.decrypt(_FIRST_NONCE, sealed, self.hash)
        except InvalidTag:
            raise ProtocolError("a handshake message was modified, or made with a different secret") from None
        self._mix_hash(sealed)
        return plain

    def _split(self) -> list[SecretKey]:
        """Noise's Split: the keys of the initiator's and of the responder's direction."""
        return SecretKey(b"").expand(self._chaining, 2)


class Initiator(_HandshakeState):
    """The side that connects: call `write()`, then `read()`, then `session()`."""

    def write(self, payload: bytes) -> bytes:
        self._mix_public(self.public)
        return self.public + self._encrypt(payload)

    def read(self, message: bytes) -> bytes:
        """The payload of the responder's message. Raises `ProtocolError`."""
        public = _public_of(message)
        self._mix_public(public)
        self._mix_shared(public)
        return self._decrypt(message[PUBLIC_KEY:])

    def session(self) -> tuple[Sealer, Opener]:
        sending, receiving = self._split()
        return Sealer(sending), Opener(receiving)


class Responder(_HandshakeState):
    """The side that accepts: call `read()`, then `write()`, then `session()`."""

    _remote = b""

    def read(self, message: bytes) -> bytes:
        """The payload of the initiator's message. Raises `ProtocolError`."""
        self._remote = _public_of(message)
        self._mix_public(self._remote)
        return self._decrypt(message[PUBLIC_KEY:])

    def write(self, payload: bytes) -> bytes:
        self._mix_public(self.public)
        self._mix_shared(self._remote)
        return self.public + self._encrypt(payload)

    def session(self) -> tuple[Sealer, Opener]:
        receiving, sending = self._split()
        return Sealer(sending), Opener(receiving)


def _public_of(message: bytes) -> bytes:
    if len(message) < PUBLIC_KEY + TAG:
        raise ProtocolError("a handshake message is too short")
    return message[:PUBLIC_KEY]
