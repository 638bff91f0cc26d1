"""The handshake `Noise_NNpsk0_25519_AESGCM_SHA256` and the sealed records that follow it. Pure: bytes in and out.

The Noise Protocol Framework, revision 34 (https://noiseprotocol.org/noise.html): two messages, an ephemeral X25519 key
in each, and a pre-shared key mixed in first. Only holders of that key can make or read either message, and a key that
leaks later doesn't open what was recorded before. The primitives are those of `cryptography`.
"""

import hashlib
import os
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ..exceptions import ProtocolError
from .keys import Key

TAG = 16  # bytes that sealing adds
MAX_PLAIN = 65535 - TAG  # bytes in one record: a Noise message has at most 65,535
RECORD_HEADER = 4
MAX_RECORD = RECORD_HEADER + 65535
PUBLIC_KEY = 32  # bytes

_PROTOCOL = b"Noise_NNpsk0_25519_AESGCM_SHA256"
REKEY_EVERY = 1 << 20  # records: 2**32 blocks of AES at most under one key, where GCM allows far more (RFC 8446, 5.5)
_LAST_NONCE = bytes(4) + b"\xff" * 8  # the nonce that Noise reserves for making the next key

_ALTERED = "a sealed record was altered, repeated or lost on its way"
_LENGTH = struct.Struct(">I")
_pack = _LENGTH.pack
_size_at = _LENGTH.unpack_from
_pid = os.getpid

Data = bytes | bytearray


class Forked(OSError):
    """The connection belongs to the parent of this process: to use it here would repeat a nonce."""


def _nonce(counter: int) -> bytes:
    """Four zero bytes, and the counter in eight, big-endian."""
    return counter.to_bytes(12, "big")


class _Direction:
    """The cipher of one direction of a connection. Each record has the next nonce; the key changes now and then."""

    __slots__ = ("_cipher", "_count", "_rekey_at")

    def __init__(self, key: Key) -> None:
        self._cipher = key.cipher()
        self._count = 0
        self._rekey_at = REKEY_EVERY

    def _advance(self) -> None:
        self._count += 1
        if self._count == self._rekey_at:
            self._cipher = AESGCM(self._cipher.encrypt(_LAST_NONCE, bytes(32), None)[:32])
            self._rekey_at += REKEY_EVERY


class Sealer(_Direction):
    """Seals what is sent in one direction of a connection, as records: a length of four bytes, big-endian, the
    ciphertext and its tag."""

    __slots__ = ("_owner",)

    def __init__(self, key: Key) -> None:
        super().__init__(key)
        self._owner = _pid()

    def seal(self, data: bytes) -> Data:
        """One record, or several for more than `MAX_PLAIN` bytes. Raises `Forked` in a forked child, whichever way it
        was forked."""
        if _pid() != self._owner:
            raise Forked("the connection belongs to the parent of this process")
        size = len(data)
        if size > MAX_PLAIN:
            return self._seal_long(memoryview(data))
        sealed = _pack(size + TAG) + self._cipher.encrypt(self._count.to_bytes(12, "big"), data, None)
        self._advance()
        return sealed

    def _seal_long(self, data: memoryview) -> bytearray:
        """In place, since to join long records would copy all of them once more."""
        records = -(-len(data) // MAX_PLAIN)
        sealed = bytearray(len(data) + records * (RECORD_HEADER + TAG))
        view = memoryview(sealed)
        start = 0
        for first in range(0, len(data), MAX_PLAIN):
            part = data[first : first + MAX_PLAIN]
            stop = start + RECORD_HEADER + len(part) + TAG
            _LENGTH.pack_into(view, start, len(part) + TAG)
            self._cipher.encrypt_into(self._count.to_bytes(12, "big"), part, None, view[start + RECORD_HEADER : stop])
            self._advance()
            start = stop
        return sealed


class Opener(_Direction):
    """Opens what is received in one direction of a connection. After any error the connection is to be closed."""

    __slots__ = ("_rest",)

    def __init__(self, key: Key) -> None:
        super().__init__(key)
        self._rest: Data = b""

    def open(self, sealed: Data | memoryview) -> bytes:
        """The plain bytes of one record, given without its length. Raises `ProtocolError` if a byte was altered, or if
        the record isn't the next one."""
        try:
            plain = self._cipher.decrypt(self._count.to_bytes(12, "big"), sealed, None)
        except InvalidTag:
            raise ProtocolError(_ALTERED) from None
        self._advance()
        return plain

    def open_into(self, sealed: memoryview, into: memoryview) -> int:
        """As `open`, into a buffer of the size of the plain bytes. Returns that size."""
        try:
            count = self._cipher.decrypt_into(self._count.to_bytes(12, "big"), sealed, None, into)
        except InvalidTag:
            raise ProtocolError(_ALTERED) from None
        self._advance()
        return count

    def feed(self, data: Data) -> bytes:
        """The plain bytes of all records that are complete now; less than one record is kept for later.

        Raises `ProtocolError` as `open`, and on a length that no record can have, before its bytes are waited for.
        """
        if self._rest:
            data = self._rest + data
        elif len(data) > RECORD_HEADER and _size_at(data)[0] == len(data) - RECORD_HEADER <= MAX_PLAIN + TAG:
            return self.open(data[RECORD_HEADER:])  # nearly always: one whole record
        plain = []
        start, end, view = 0, len(data), memoryview(data)
        while end - start >= RECORD_HEADER:
            size = record_size(view[start:])
            stop = start + RECORD_HEADER + size
            if stop > end:
                break
            plain.append(self.open(view[start + RECORD_HEADER : stop]))
            start = stop
        self._rest = data[start:]
        return b"".join(plain)


def record_size(header: bytes | memoryview) -> int:
    """The bytes that follow a record's four bytes of length. Raises `ProtocolError` on a length no record can have."""
    size: int = _size_at(header)[0]
    if not TAG <= size <= MAX_PLAIN + TAG:
        raise ProtocolError(f"a sealed record of {size:,} bytes, which none can have")
    return size


class _Handshake:
    """Noise's symmetric state, and the steps that both sides share."""

    def __init__(self, psk: Key, prologue: bytes) -> None:
        self.hash = _PROTOCOL  # as it is, since it has the 32 bytes of a hash
        self._chaining = Key(_PROTOCOL)
        self._private = X25519PrivateKey.generate()
        self._mix_hash(prologue)
        self._mix_key_and_hash(psk)

    @property
    def public(self) -> bytes:
        return self._private.public_key().public_bytes_raw()

    def _mix_hash(self, data: bytes) -> None:
        self.hash = hashlib.sha256(self.hash + data).digest()

    def _mix_key_and_hash(self, psk: Key) -> None:
        self._chaining, hashed, key = psk.expand(self._chaining, 3)
        self.hash = hashed.hash_after(self.hash)
        self._start_cipher(key)

    def _mix_key(self, material: Key) -> None:
        self._chaining, key = material.expand(self._chaining, 2)
        self._start_cipher(key)

    def _start_cipher(self, key: Key) -> None:
        self._cipher = key.cipher()
        self._counter = 0

    def _mix_public(self, public: bytes) -> None:
        self._mix_hash(public)
        self._mix_key(Key(public))  # where a pre-shared key is used, ephemeral keys are mixed in as well

    def _mix_shared(self, public: bytes) -> None:
        """The `ee` token. Raises `ProtocolError` for a point that gives the same secret whatever our key."""
        try:
            shared = Key(self._private.exchange(X25519PublicKey.from_public_bytes(public)))
        except ValueError as error:
            raise ProtocolError("a key in the handshake is of no use") from error
        self._mix_key(shared)

    def _encrypt(self, plain: bytes) -> bytes:
        sealed = self._cipher.encrypt(_nonce(self._counter), plain, self.hash)
        self._counter += 1
        self._mix_hash(sealed)
        return sealed

    def _decrypt(self, sealed: bytes) -> bytes:
        try:
            plain = self._cipher.decrypt(_nonce(self._counter), sealed, self.hash)
        except InvalidTag:
            raise ProtocolError("a message of the handshake was altered, or made with another secret") from None
        self._counter += 1
        self._mix_hash(sealed)
        return plain

    def _split(self) -> list[Key]:
        """The keys for what the initiator sends, and for what the responder sends."""
        return Key(b"").expand(self._chaining, 2)


class Initiator(_Handshake):
    """The side that dialled: `write`, then `read`, then `session`."""

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


class Responder(_Handshake):
    """The side that was dialled: `read`, then `write`, then `session`."""

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
        raise ProtocolError("a message of the handshake is too short")
    return message[:PUBLIC_KEY]
