"""Other protocols, by their first bytes: health checks, port scans, addresses of other programs. Pure."""

import re

# What four bytes begin with -> what it is. Taken for a length, each is far more than a frame may have.
_KNOWN = (
    (re.compile(rb"GET |HEAD|POST|PUT |DELE|OPTI|PATC|CONN|TRAC|PRI "), "an HTTP request"),
    (re.compile(rb"HTTP"), "an HTTP response"),
    (re.compile(rb"\x16\x03[\x00-\x04]"), "a TLS hello"),
    (re.compile(rb"[\x14\x15\x17]\x03[\x00-\x04]"), "a TLS record"),
    (re.compile(rb"PROX|\r\n\r\n"), "a header of the PROXY protocol"),
    (re.compile(rb"SSH-"), "an SSH banner"),
    (re.compile(rb"\*\d+\r|[+-](PON|OK|ERR|NOA|DEN)"), "the Redis protocol"),
)
HEADER = 4  # bytes that are looked at


def described(header: bytes) -> str:
    """What sends these first bytes, in words for a log; empty when they are of no protocol that is known here."""
    return next((what for pattern, what in _KNOWN if pattern.match(header[:HEADER])), "")


def too_long(header: bytes, size: int, limit: int) -> str:
    """What is said of a frame that is longer than it may be."""
    if what := described(header):
        advice = ""
        if what == "an HTTP request":
            advice = "; point HTTP health checks at the site's health view or at the node's metrics port"
        return f"it sent {what}, and here only the cluster's own protocol is spoken{advice}"
    return f"a frame of {size:,} bytes, more than {limit:,}"
