"""Busy polling: whether to poll a socket for a moment before sleeping until the reply comes.

Waking up an idle processor can take longer than an exchange with a node nearby: twice as long on a virtual machine.
Polling keeps the processor awake. It takes the processor from no other process while another one is idle; while none
is, no processor needs to be woken up, and sleeping is as fast. Under a CPU quota polling would use up the quota.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

POLL_FOR = 100e-6  # seconds: several times as long as a node nearby takes to reply
MIN_REST, MAX_REST = 4, 4096  # replies
CACHED_FOR = 0.01  # seconds
_CHECK_SHARE = 100  # the result of a check is used for this many times the duration of the check at least

IsIdle = Callable[[float], bool]


def idle_processor() -> bool:
    """Whether a processor that this process may use is idle, according to the system. Takes 7 us."""
    try:
        with open("/proc/loadavg", "rb", buffering=0) as loadavg:
            running = int(loadavg.read(64).split()[3].partition(b"/")[0])
        return 0 < running < len(os.sched_getaffinity(0))  # 0 is wrong, since this process runs
    except (OSError, AttributeError, LookupError, ValueError):
        return False


def has_cpu_quota(cgroup_of: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> bool:
    """Whether the control group of this process, or one above it, limits its CPU time.

    Reads `cpu.max` of cgroup v2 and `cpu.cfs_quota_us` of v1. False where there are no control groups.
    """
    try:
        groups = [line.split(":", 2)[1:] for line in cgroup_of.read_text().splitlines()]
    except OSError:
        return False
    for controllers, path in groups:
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = Path(path.lstrip("/"))
        for directory in (group, *group.parents):
            if _limits(mount / directory / "cpu.max") or _limits(mount / controllers / directory / "cpu.cfs_quota_us"):
                return True
    return False


def _limits(quota: Path) -> bool:
    try:
        return quota.read_text().split()[0] not in ("max", "-1")
    except (OSError, IndexError):
        return False


def never(now: float) -> bool:
    """The `IsIdle` of connections that never poll."""
    return False


def make_is_idle(*, busy_poll: bool) -> IsIdle:
    """The `IsIdle` of a client, given its setting."""
    return Processors().idle if busy_poll and not has_cpu_quota() else never


class Processors:
    """Whether a processor is idle, checked now and then for all connections of a client."""

    def __init__(
        self, idle_processor: Callable[[], bool] = idle_processor, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._idle_processor = idle_processor
        self._clock = clock
        self._idle = False
        self._check_at = 0.0

    def idle(self, now: float) -> bool:
        """Whether a processor was idle at the last check; checks again once that result has expired. `now` is seconds
        of the clock given to the constructor, by default the monotonic one."""
        if now >= self._check_at:
            self._check_at = now + CACHED_FOR  # meanwhile other threads use the last result
            self._idle = self._idle_processor()
            # Among threads that compute a check takes milliseconds: each system call gives them the interpreter.
            checked = self._clock()
            self._check_at = checked + max(CACHED_FOR, _CHECK_SHARE * (checked - now))
        return self._idle


class BusyPoll:
    """Decides for each reply on one connection whether to poll, by the results before.

    After polling in vain it rests for 4 replies, after each further failure for four times as many. So a node that is
    slow or far away costs one poll in MAX_REST replies, and single failures cost nothing. While no processor is idle,
    it checks again after MIN_REST replies.
    """

    __slots__ = ("_is_idle", "_next_rest", "_rest")

    def __init__(self, is_idle: IsIdle) -> None:
        self._is_idle = is_idle
        self._rest = 0
        self._next_rest = MIN_REST

    def should_poll(self, now: float) -> bool:
        """Whether to poll for the next reply. Called once for each; `now` in seconds of the monotonic clock."""
        if self._rest:
            self._rest -= 1
            return False
        if self._is_idle(now):
            return True
        self._rest = MIN_REST
        return False

    def succeeded(self) -> None:
        """Notes that the reply came while polling."""
        self._next_rest = MIN_REST

    def failed(self) -> None:
        """Notes that the reply didn't come within POLL_FOR."""
        self._rest = self._next_rest
        self._next_rest = min(MAX_REST, 4 * self._rest)
