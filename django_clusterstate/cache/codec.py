"""How values become bytes and back: serializers and compressors."""

import importlib
import json
import pickle
import sys
import zlib
from collections.abc import Mapping
from typing import Any

import msgspec
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.core.serializers.json import DjangoJSONEncoder
from django.utils.module_loading import import_string

from ..encoding import to_msgpack
from ..exceptions import raised_by_signal
from ..wire import messages as wire

COMPRESS_ABOVE = 1024  # bytes: below, what is saved is less than what an entry costs besides
MAX_DECOMPRESSED = 64 * 1024 * 1024  # bytes that one value may unpack to
_ZLIB_LEVEL = 1  # a quarter of the time of 6, for a fifth more bytes of a page of HTML

_INT64 = range(-(2**63), 2**63)
# Before each value of a cache with a compressor. No pickle, JSON or msgpack that we write begins with one of them, so
# that values from before there was a compressor are told apart.
_PLAIN, _PACKED = b"\0", b"\1"


# What code in C raises for bytes that it can't read, or that name what isn't there any more.
_UNREADABLE = (
    ArithmeticError, AttributeError, EOFError, ImportError, LookupError, MemoryError, RuntimeError, TypeError,
    ValueError, pickle.PickleError, zlib.error, msgspec.MsgspecError,
)  # fmt: skip
_PACKAGE = __name__.partition(".")[0]


def unreadable(error: Exception) -> bool:
    """Whether `ValueCodec.load` raised it because of the value. A signal handler, such as that of a soft time limit, or
    another thread may have interrupted it with an exception of theirs, which is for the caller.

    Code in Python, such as a `__setstate__`, may raise anything because of the value. A `SynchronousOnlyOperation` only
    says that the value is to be read in a thread.
    """
    if isinstance(error, SynchronousOnlyOperation) or raised_by_signal(error):
        return False
    return isinstance(error, _UNREADABLE) or not _in_our_code(error)


def _in_our_code(error: Exception) -> bool:
    """Whether it was raised by our own code, or where that calls what is written in C."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    name = "" if traceback is None else str(traceback.tb_frame.f_globals.get("__name__", ""))
    return name.partition(".")[0] == _PACKAGE


class PickleSerializer:
    """Turns values into bytes and back. Anyone who can write to the cluster can run code: see docs/settings.md."""

    def dumps(self, value: Any) -> bytes:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)

    loads = staticmethod(pickle.loads)  # without a method around it, which would be a frame for each value


class JsonSerializer:
    """JSON, with what Django's encoder adds to it: dates, times, decimals and UUIDs come back as text."""

    def dumps(self, value: Any) -> bytes:
        return json.dumps(value, cls=DjangoJSONEncoder, ensure_ascii=False, separators=(",", ":")).encode()

    def loads(self, data: bytes) -> Any:
        return json.loads(data)


class MsgpackSerializer:
    """msgpack: as JSON, and bytes, keys that aren't text, and datetimes with a time zone.

    An instance of a subclass of text, numbers or bytes, such as `SafeString`, comes back without its class.
    """

    def dumps(self, value: Any) -> bytes:
        return to_msgpack(value)

    def loads(self, data: bytes) -> Any:
        return msgspec.msgpack.decode(data)


class ZlibCompressor:
    """zlib's fastest level. `decompress` raises `ValueError` beyond `MAX_DECOMPRESSED`, or `zlib.error`."""

    def compress(self, data: bytes) -> bytes:
        return zlib.compress(data, _ZLIB_LEVEL)

    def decompress(self, data: bytes) -> bytes:
        return _bounded(zlib.decompressobj(), data)


class ZstdCompressor:
    """Zstandard, of Python 3.14 or the package backports.zstd; raises `ImproperlyConfigured` without either."""

    def __init__(self) -> None:
        try:
            self._zstd = importlib.import_module(
                "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
            )
        except ImportError as error:
            raise ImproperlyConfigured(
                "ClusterCache's COMPRESSOR 'zstd' needs a package: pip install 'django-clusterstate[zstd]'"
            ) from error

    def compress(self, data: bytes) -> bytes:
        packed: bytes = self._zstd.compress(data)
        return packed

    def decompress(self, data: bytes) -> bytes:
        try:
            return _bounded(self._zstd.ZstdDecompressor(), data)
        except self._zstd.ZstdError as error:
            raise ValueError(str(error)) from error


def _bounded(decompressor: Any, data: bytes) -> bytes:
    found: bytes = decompressor.decompress(data, MAX_DECOMPRESSED + 1)
    if len(found) > MAX_DECOMPRESSED:
        raise ValueError(f"it unpacks to more than {MAX_DECOMPRESSED:,} bytes")
    if not decompressor.eof:
        raise ValueError("it is cut short")
    return found


SERIALIZERS = {"pickle": PickleSerializer, "json": JsonSerializer, "msgpack": MsgpackSerializer}
COMPRESSORS = {"zlib": ZlibCompressor, "zstd": ZstdCompressor}


class ValueCodec:
    """The values of one cache, by its options. Raises `ImproperlyConfigured` for those, `ImportError` for a path."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        compressor = options.get("COMPRESSOR")
        self._serializer = _made("SERIALIZER", options.get("SERIALIZER", "pickle"), SERIALIZERS)
        self._compressor: Any = None if compressor is None else _made("COMPRESSOR", compressor, COMPRESSORS)
        self._compress_above = options.get("COMPRESS_ABOVE", COMPRESS_ABOVE)
        if type(self._compress_above) is not int or self._compress_above < 0:
            raise ImproperlyConfigured(
                f"ClusterCache's COMPRESS_ABOVE must be a number of bytes, not {self._compress_above!r}."
            )

    def dump(self, value: Any) -> wire.Value:
        # Integers stay such, so that the owner can add to them; a bool is to come back as a bool.
        if type(value) is int and value in _INT64:
            return value
        data = _as_bytes(self._serializer.dumps(value), self._serializer, "dumps")
        return data if self._compressor is None else self._pack(data)

    def load(self, value: wire.Value) -> Any:
        """Raises whatever the serializer or the compressor does for what isn't theirs."""
        if not isinstance(value, bytes):
            return value
        return self._serializer.loads(value if self._compressor is None else self._unpack(value))

    def _pack(self, data: bytes) -> bytes:
        if len(data) > self._compress_above:
            packed = _as_bytes(self._compressor.compress(data), self._compressor, "compress")
            if len(packed) < len(data):
                return _PACKED + packed
        return _PLAIN + data

    def _unpack(self, data: bytes) -> Any:
        mark = data[:1]
        if mark == _PACKED:
            return self._compressor.decompress(data[1:])
        return data[1:] if mark == _PLAIN else data


def _made(option: str, given: Any, known: Mapping[str, type]) -> Any:
    if isinstance(given, str) and given in known:
        return known[given]()
    if isinstance(given, str) and "." not in given:
        raise ImproperlyConfigured(
            f"ClusterCache's {option} must be one of {', '.join(sorted(known))}, or the dotted path of a class, "
            f"not {given!r}."
        )
    made_of = import_string(given) if isinstance(given, str) else given
    try:
        return made_of()
    except TypeError as error:  # such as django-redis's, which take the options
        raise ImproperlyConfigured(
            f"ClusterCache's {option} {given!r} can't be made without arguments: {error}"
        ) from error


def _as_bytes(data: Any, maker: Any, method: str) -> bytes:
    if not isinstance(data, bytes):
        raise TypeError(f"{type(maker).__name__}.{method} must return bytes, not {type(data).__name__}")
    return data
