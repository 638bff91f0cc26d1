"""The three things that can go wrong between a requester and a node."""


class ClusterStateError(Exception):
    """The base of all errors of this package."""


class ProtocolError(ClusterStateError):
    """The other side said something that it must not say: another version, another secret, a broken frame."""


class Unavailable(ClusterStateError, ConnectionError):
    """No answer came: refused, closed or too late. Also a `ConnectionError`, which health checks understand."""
