"""Whether to look for an answer again and again for a moment, before sleeping until it comes.

To wake an idle processor can cost more than the whole exchange with a node nearby: twice as much on a virtual machine.
Who looks keeps it awake, and takes it from nobody while another one is idle. Where none is, others would have to wait
for us, and nothing needs to be woken: who sleeps there is served as fast.
"""

import os
from collections.abc import Callable

LOOK_FOR = 100e-6  # seconds: a few times what a node nearby takes to answer whoever is awake
MIN_REST, MAX_REST = 4, 4096  # answers
BELIEVED_FOR = 0.01  # seconds; to find out takes 7 us


def idle_processor() -> bool:
    """Whether one that we may use has nothing to do, as far as the system tells."""
    try:
        with open("/proc/loadavg", "rb", buffering=0) as loadavg:
            running = int(loadavg.read(64).split()[3].partition(b"/")[0])
        return running < len(os.sched_getaffinity(0))
    except (OSError, AttributeError, LookupError, ValueError):
        return False


class BusyPoll:
    """Decides for the answers of one connection, by what came of it before.

    After a look in vain it rests for 4 answers, after each further one for four times as many. So a node far away, or
    slow, costs one look in MAX_REST answers, and where looking nearly always helps the exceptions cost nothing.
    """

    __slots__ = ("_ask_at", "_idle", "_idle_processor", "_next_rest", "_rest")

    def __init__(self, idle_processor: Callable[[], bool] = idle_processor) -> None:
        self._idle_processor = idle_processor
        self._idle = False
        self._ask_at = 0.0
        self._rest = 0
        self._next_rest = MIN_REST

    def due(self, now: float) -> bool:
        """Whether to look for the next answer. Asked once for each; `now` in seconds of the monotonic clock."""
        if self._rest:
            self._rest -= 1
            return False
        if now >= self._ask_at:
            self._ask_at = now + BELIEVED_FOR
            self._idle = self._idle_processor()
        return self._idle

    def found(self) -> None:
        """The answer came while we looked."""
        self._next_rest = MIN_REST

    def missed(self) -> None:
        """It didn't come within LOOK_FOR."""
        self._rest = self._next_rest
        self._next_rest = min(MAX_REST, 4 * self._rest)
