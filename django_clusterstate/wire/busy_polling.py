"""Whether to look for an answer again and again for a moment, before sleeping until it comes.

To wake an idle processor can cost more than the whole exchange with a node nearby: twice as much on a virtual machine.
Who looks keeps it awake, and while another one is idle takes it from no other process. Where none is, others would have
to wait for us, and nothing needs to be woken: who sleeps there is served as fast.
"""

import os
import time
from collections.abc import Callable

POLL_FOR = 100e-6  # seconds: a few times what a node nearby takes to answer whoever is awake
MIN_REST, MAX_REST = 4, 4096  # answers
BELIEVED_FOR = 0.01  # seconds
_ASKING = 100  # times as long as it took to ask, what was said is believed at least

IsIdle = Callable[[float], bool]


def idle_processor() -> bool:
    """Whether one that we may use has nothing to do, as far as the system tells. Takes 7 us."""
    try:
        with open("/proc/loadavg", "rb", buffering=0) as loadavg:
            running = int(loadavg.read(64).split()[3].partition(b"/")[0])
        return 0 < running < len(os.sched_getaffinity(0))  # 0 is made up: we run ourselves
    except (OSError, AttributeError, LookupError, ValueError):
        return False


def never(now: float) -> bool:
    """For connections that never look."""
    return False


class Processors:
    """Whether one is idle, asked for now and then by all connections of a client."""

    def __init__(
        self, idle_processor: Callable[[], bool] = idle_processor, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._idle_processor = idle_processor
        self._clock = clock
        self._idle = False
        self._ask_at = 0.0

    def idle(self, now: float) -> bool:
        """As was last said. `now` in seconds of the clock, by default the monotonic one."""
        if now >= self._ask_at:
            self._ask_at = now + BELIEVED_FOR  # meanwhile other threads go on with what was said
            self._idle = self._idle_processor()
            # Among threads that compute it takes milliseconds: each step gives them the interpreter.
            asked = self._clock()
            self._ask_at = asked + max(BELIEVED_FOR, _ASKING * (asked - now))
        return self._idle


class BusyPoll:
    """Decides for the answers of one connection, by what came of it before.

    After a look in vain it rests for 4 answers, after each further one for four times as many. So a node far away, or
    slow, costs one look in MAX_REST answers, and where looking nearly always helps the exceptions cost nothing. Where
    no processor is idle it asks for one again after MIN_REST answers.
    """

    __slots__ = ("_is_idle", "_next_rest", "_rest")

    def __init__(self, is_idle: IsIdle) -> None:
        self._is_idle = is_idle
        self._rest = 0
        self._next_rest = MIN_REST

    def should_poll(self, now: float) -> bool:
        """Whether to look for the next answer. Asked once for each; `now` in seconds of the monotonic clock."""
        if self._rest:
            self._rest -= 1
            return False
        if self._is_idle(now):
            return True
        self._rest = MIN_REST
        return False

    def succeeded(self) -> None:
        """The answer came while we looked."""
        self._next_rest = MIN_REST

    def failed(self) -> None:
        """It didn't come within POLL_FOR."""
        self._rest = self._next_rest
        self._next_rest = min(MAX_REST, 4 * self._rest)
