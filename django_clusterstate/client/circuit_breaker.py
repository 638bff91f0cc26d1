"""Circuit breakers: after failures in a row requests fail at once, except for one at a time that tries again."""

from ..exceptions import CircuitOpen
from .log import logger

FAILURES_TO_OPEN = 3
HALF_OPEN_AFTER = 0.5  # seconds in which requests fail at once; then one may try
FIRST_TRY = 32  # the first try may take this part of a deadline, each further one twice as long


class CircuitBreaker:
    """Whether requests to a node or server are sent. `str()` names the node or server."""

    __slots__ = ("failures", "reason", "retry_at", "tries")

    def __init__(self) -> None:
        self.failures = 0  # in a row
        self.reason = ""  # of the last failure
        self.retry_at = 0.0
        self.tries = 0  # since the breaker opened

    @property
    def is_open(self) -> bool:
        return self.failures >= FAILURES_TO_OPEN

    def check(self, now: float) -> float:
        """Returns the share of a deadline that a request may take. Raises `CircuitOpen` while the breaker is open.

        A half-open breaker lets one request try, with a short deadline at first: a node nearby replies at once or not
        at all, and one that is far away is reached after a few tries.
        """
        if not self.is_open:
            return 1.0
        if now < self.retry_at:
            raise CircuitOpen(
                f"circuit breaker for {self} is open after {self.failures} failures in a row ({self.reason})"
            )
        self.retry_at = now + HALF_OPEN_AFTER
        self.tries += 1
        return 1 / max(1, FIRST_TRY >> (self.tries - 1))

    def failed(self, now: float, reason: str) -> bool:
        """Counts and logs a failure. True when it opens the breaker."""
        self.failures += 1
        self.reason = reason
        self.retry_at = now + HALF_OPEN_AFTER
        if self.failures < FAILURES_TO_OPEN:
            logger.debug("%s failed, will retry on next request: %s", self, reason)
        elif self.failures == FAILURES_TO_OPEN:
            logger.warning(
                "circuit breaker for %s opened after %d failures in a row (%s); "
                "requests to it fail at once and one is tried every %s s",
                self, self.failures, reason, HALF_OPEN_AFTER,
            )  # fmt: skip
            return True
        return False

    def answered(self) -> None:
        """Forgets the failures, and logs that the breaker closes if it was open."""
        if self.is_open:
            logger.info("circuit breaker for %s closed: it is responding again", self)
        self.failures = self.tries = 0
