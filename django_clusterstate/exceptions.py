"""What can go wrong between a requester and a node."""


class ClusterStateError(Exception):
    """The base of all errors of this package."""


class ProtocolError(ClusterStateError):
    """The other side said something that it must not say: another version, another secret, a broken frame."""


class Unavailable(ClusterStateError, ConnectionError):
    """No answer came: refused, closed or too late. Also a `ConnectionError`, which health checks understand."""


class AnswerLost(Unavailable):
    """The request was sent, and the connection ended before the answer: it may have been executed or not."""


class TimedOut(AnswerLost):
    """The request was sent, and no answer came within the deadline: it may have been executed, or may still be."""
