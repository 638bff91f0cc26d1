"""What a write costs a cache that is full: each drops what was used least recently. The store alone."""

import sys
import time
from collections.abc import Iterator
from statistics import median

from django_clusterstate.core.cache.store import ENTRY_OVERHEAD, CacheStore

VALUE = b"v" * 50
LARGE = bytes(1 << 20)
WRITES = 50_000
TTL = 300.0  # seconds: nothing expires
IN_A_ROW, ROWS = 5, 9
REFILL = 20_000  # writes after which there is again no room to spare


def key_of(number: int) -> bytes:
    return b"default\0:1:product:%08d:price" % number


EACH = len(key_of(0)) + sys.getsizeof(VALUE) + ENTRY_OVERHEAD


class Full:
    """A store with room for so many small entries, of which it was given twice as many."""

    def __init__(self, count: int) -> None:
        self._store: CacheStore[bytes] = CacheStore(EACH * count, size_of=sys.getsizeof)
        self._written = 0
        for _ in range(2 * count):
            self.write(VALUE)

    def write(self, value: bytes) -> float:
        """Another key; how many seconds that took."""
        key = key_of(self._written)
        self._written += 1
        start = time.perf_counter()
        self._store.set(key, value, TTL, start)
        return time.perf_counter() - start

    def large_in_a_row(self) -> list[float]:
        """The same of some large values, one after the other, into a full store."""
        for _ in range(REFILL):
            self.write(VALUE)
        return [self.write(LARGE) for _ in range(IN_A_ROW)]


def measure(most: int) -> Iterator[str]:
    """The lines of the report, as they come to be known."""
    yield f"full, \u00b5s of a write{'p50':>9}{'p99.9':>9}{'then 1 MiB: the 1st':>22}{'slowest of the next 4':>24}"
    for count in (most // 100, most // 10, most):
        full = Full(count)
        small = sorted(full.write(VALUE) for _ in range(WRITES))
        rows = [full.large_in_a_row() for _ in range(ROWS)]
        first, slowest = median(row[0] for row in rows), median(max(row[1:]) for row in rows)
        at = [1e6 * seconds for seconds in (small[WRITES // 2], small[WRITES * 999 // 1000], first, slowest)]
        yield f"  {count:>18,}{at[0]:9.1f}{at[1]:9.1f}{at[2]:22.0f}{at[3]:24.0f}"
