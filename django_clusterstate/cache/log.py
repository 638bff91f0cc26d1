"""The logger of the caches, and a limit on lines that repeat."""

import logging
import time

from .. import runtime

WARN_EVERY = 600.0  # seconds between two lines of one kind for a namespace: a deploy may cause thousands

logger = logging.getLogger("django_clusterstate.cache")


def is_due(kind: str, namespace: bytes) -> bool:
    """Whether to log a line of a kind now: this process has logged none for the namespace in the last ten minutes."""
    logged: list[float] = runtime.shared((kind, namespace), list)
    now = time.monotonic()
    if logged and now - logged[-1] < WARN_EVERY:
        return False
    logged[:] = [now]
    return True
