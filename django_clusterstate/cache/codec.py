"""Encodes values as bytes and back: serializers, compressors, and values that can't be read."""

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

from ..exceptions import raised_by_signal
from ..msgpack_encoding import to_msgpack
from ..wire import messages as wire
from ..wire.framing import MAX_REQUEST
from .log import is_due, logger
from .options import CacheOptions

MESSAGE_OVERHEAD = 64  # bytes of a request that are neither keys nor values, at most
# The largest encoded value: a request also holds its key, and that of a lease that is released with it.
MAX_VALUE_BYTES = MAX_REQUEST - MESSAGE_OVERHEAD - 2 * wire.MAX_KEY_BYTES
MAX_DECOMPRESSED = 64 * 1024 * 1024  # bytes that one value may decompress to
_ZLIB_LEVEL = 1  # a quarter of the time of 6, for a fifth more bytes of a page of HTML

# The first byte of each value of a cache with a compressor. No pickle, JSON or msgpack of this module begins with one,
# so values that were stored before there was a compressor are recognized.
_PLAIN, _COMPRESSED = b"\0", b"\1"

# Raised by code in C for bytes that it can't read, or that name a class or module that no longer exists.
_UNREADABLE = (
    ArithmeticError, AttributeError, EOFError, ImportError, LookupError, MemoryError, RuntimeError, TypeError,
    ValueError, pickle.PickleError, zlib.error, msgspec.MsgspecError,
)  # fmt: skip
_PACKAGE = __name__.partition(".")[0]


def _is_unreadable(error: Exception) -> bool:
    """Whether a serializer or compressor raised the error because of the value.

    Code in Python, such as a `__setstate__`, may raise anything because of the value. Three kinds of errors are for the
    caller: those of a signal handler, such as a soft time limit's; those that another thread raises in this one; and
    `SynchronousOnlyOperation`, after which the value is read in a thread.
    """
    if isinstance(error, SynchronousOnlyOperation) or raised_by_signal(error):
        return False
    return isinstance(error, _UNREADABLE) or not _raised_in_package(error)


def _raised_in_package(error: Exception) -> bool:
    """Whether the innermost Python frame is of this package, which raised the error or called C code that did."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    name = "" if traceback is None else str(traceback.tb_frame.f_globals.get("__name__", ""))
    return name.partition(".")[0] == _PACKAGE


class PickleSerializer:
    """pickle with the newest protocol. Any process that can write to the cluster can run code here: see
    docs/settings.md."""

    def dumps(self, value: Any) -> bytes:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)

    loads = staticmethod(pickle.loads)  # not a method, which would add a call for each value


class JsonSerializer:
    """JSON by Django's encoder: dates, times, decimals and UUIDs come back as text."""

    def dumps(self, value: Any) -> bytes:
        return json.dumps(value, cls=DjangoJSONEncoder, ensure_ascii=False, separators=(",", ":")).encode()

    def loads(self, data: bytes) -> Any:
        return json.loads(data)


class MsgpackSerializer:
    """msgpack: all types of JSON, and bytes, keys that aren't text, and datetimes with a time zone.

    An instance of a subclass of text, numbers or bytes, such as `SafeString`, comes back without its class.
    """

    def dumps(self, value: Any) -> bytes:
        return to_msgpack(value)

    def loads(self, data: bytes) -> Any:
        return msgspec.msgpack.decode(data)


class ZlibCompressor:
    """zlib at its fastest level. `decompress` raises `zlib.error`, or `ValueError` above `MAX_DECOMPRESSED`."""

    def compress(self, data: bytes) -> bytes:
        return zlib.compress(data, _ZLIB_LEVEL)

    def decompress(self, data: bytes) -> bytes:
        return _decompress(zlib.decompressobj(), data)


class ZstdCompressor:
    """Zstandard, from Python 3.14 or the package backports.zstd; raises `ImproperlyConfigured` without either."""

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
            return _decompress(self._zstd.ZstdDecompressor(), data)
        except self._zstd.ZstdError as error:
            raise ValueError(str(error)) from error


def _decompress(decompressor: Any, data: bytes) -> bytes:
    found: bytes = decompressor.decompress(data, MAX_DECOMPRESSED + 1)
    if len(found) > MAX_DECOMPRESSED:
        raise ValueError(f"the value decompresses to more than {MAX_DECOMPRESSED:,} bytes")
    if not decompressor.eof:
        raise ValueError("the compressed value is cut short")
    return found


SERIALIZERS = {"pickle": PickleSerializer, "json": JsonSerializer, "msgpack": MsgpackSerializer}
COMPRESSORS = {"zlib": ZlibCompressor, "zstd": ZstdCompressor}


class ValueCodec:
    """Encodes the values of one cache. Raises `ImproperlyConfigured` for wrong options, `ImportError` for a path."""

    def __init__(self, options: CacheOptions) -> None:
        compressor = options.compressor
        self._namespace = options.namespace
        self._serializer = _make("SERIALIZER", options.serializer, SERIALIZERS)
        self._compressor: Any = None if compressor is None else _make("COMPRESSOR", compressor, COMPRESSORS)
        self._compress_above = options.compress_above

    def dump(self, value: Any) -> wire.Value:
        """The encoded value, of any size. Raises whatever the serializer and the compressor raise."""
        if type(value) is int and value in wire.INT64:  # the owner can add to it; a bool has to come back as a bool
            return value
        data = _checked(self._serializer.dumps(value), self._serializer, "dumps")
        return data if self._compressor is None else self._compress(data)

    def load(self, value: wire.Value, default: Any) -> Any:
        """The decoded value; the default, as for a miss, for one that was written with other options or other code.

        Raises `SynchronousOnlyOperation` for a value that can't be read in an event loop.
        """
        if not isinstance(value, bytes):
            return value
        try:
            return self._serializer.loads(value if self._compressor is None else self._decompress(value))
        except Exception as error:  # a serializer may raise anything
            if not _is_unreadable(error):
                raise
            if is_due("unreadable", self._namespace):
                logger.warning(
                    "cache %r: a stored value cannot be read (%s: %s) and counts as a miss; it was written with a "
                    "different SERIALIZER, COMPRESSOR or version of the code",
                    self._namespace.decode(), type(error).__name__, error,
                )  # fmt: skip
            return default

    def load_without_queries(self, value: wire.Value, default: Any) -> Any:
        """The decoded value; the default also for one that can't be read in an event loop."""
        try:
            return self.load(value, default)
        except SynchronousOnlyOperation:
            return default

    def _compress(self, data: bytes) -> bytes:
        if len(data) > self._compress_above:
            compressed = _checked(self._compressor.compress(data), self._compressor, "compress")
            if len(compressed) < len(data):
                return _COMPRESSED + compressed
        return _PLAIN + data

    def _decompress(self, data: bytes) -> Any:
        mark = data[:1]
        if mark == _COMPRESSED:
            return self._compressor.decompress(data[1:])
        return data[1:] if mark == _PLAIN else data


def is_too_big(value: wire.Value) -> bool:
    """Whether an encoded value is longer than a request can hold."""
    return isinstance(value, bytes) and len(value) > MAX_VALUE_BYTES


def _make(option: str, given: Any, known: Mapping[str, type]) -> Any:
    """An instance of the class that an option names or is."""
    if isinstance(given, str) and given in known:
        return known[given]()
    if isinstance(given, str) and "." not in given:
        raise ImproperlyConfigured(
            f"ClusterCache's {option} must be one of {', '.join(sorted(known))}, or the dotted path of a class, "
            f"not {given!r}."
        )
    cls = import_string(given) if isinstance(given, str) else given
    try:
        return cls()
    except TypeError as error:  # such as django-redis's serializers, which take the options
        raise ImproperlyConfigured(
            f"ClusterCache's {option} {given!r} cannot be made without arguments: {error}"
        ) from error


def _checked(data: Any, maker: Any, method: str) -> bytes:
    if not isinstance(data, bytes):
        raise TypeError(f"{type(maker).__name__}.{method} must return bytes, not {type(data).__name__}")
    return data
