"""The logger of a node, and a limit on lines that may have any number of causes.

`docs/operations.md` lists every line, and tests hold the code to that list.
"""

import logging
import math
from collections.abc import Callable

logger = logging.getLogger("django_clusterstate.node")


class RateLimitedLog:
    """Warnings that may have any number of causes, and must not flood the log.

    Messages about one subject are at least `again` seconds apart, any two at least `spacing` seconds. A message
    says how many were left out before it.
    """

    def __init__(self, clock: Callable[[], float], again: float, spacing: float = 0.0) -> None:
        self._clock = clock
        self._again = again
        self._spacing = spacing
        self._written: dict[str, float] = {}  # by subject, the latest last
        self._last = -math.inf
        self._omitted = 0

    def write(self, text: str, subject: str = "") -> None:
        """Logs the text, unless a line about its subject (by default the text itself) was logged a short time ago."""
        now, subject = self._clock(), subject or text
        self._written = {one: when for one, when in self._written.items() if now - when < self._again}
        if subject in self._written or now - self._last < self._spacing:
            self._omitted += 1
            return
        more = f" (and {self._omitted} more since the last such message)" if self._omitted else ""
        self._written[subject] = self._last = now
        self._omitted = 0
        logger.warning("%s%s", text, more)
