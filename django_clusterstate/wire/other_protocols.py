"""Recognizes other protocols by their first bytes, for the log: health checks, port scans, wrong addresses. Pure."""

import re

# The first four bytes of each protocol. Read as a length, they exceed the limit of a frame.
_PROTOCOLS = (
    (re.compile(rb"GET |HEAD|POST|PUT |DELE|OPTI|PATC|CONN|TRAC|PRI "), "an HTTP request"),
    (re.compile(rb"HTTP"), "an HTTP response"),
    (re.compile(rb"\x16\x03[\x00-\x04]"), "a TLS hello"),
    (re.compile(rb"[\x14\x15\x17]\x03[\x00-\x04]"), "a TLS record"),
    (re.compile(rb"PROX|\r\n\r\n"), "a header of the PROXY protocol"),
    (re.compile(rb"SSH-"), "an SSH banner"),
    (re.compile(rb"\*\d+\r|[+-](PON|OK|ERR|NOA|DEN)"), "the Redis protocol"),
)


def recognize(header: bytes) -> str:
    """The protocol that begins with these bytes, with its article for a sentence; empty if it isn't recognized."""
    return next((name for pattern, name in _PROTOCOLS if pattern.match(header)), "")


def frame_too_long(header: bytes, size: int, limit: int) -> str:
    """The error message for a frame whose header announces more bytes than the limit."""
    protocol = recognize(header)
    if not protocol:
        return f"a frame of {size:,} bytes, more than {limit:,}"
    advice = ""
    if protocol == "an HTTP request":
        advice = "; point HTTP health checks at the site's health view or at the node's metrics port"
    return f"it sent {protocol}, but this port speaks only the cluster's own protocol{advice}"
