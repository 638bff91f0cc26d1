"""What a process tracks: summed by name and key, and sent to the owners by a thread of its own.

`track()` only counts; whoever calls it waits for nothing. An event leaves with the next batch, INTERVAL seconds later
at most, and is given up KEEP seconds after it came.
"""

import atexit
import contextlib
import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from os import getpid

from .blocking import Client
from .event_batches import Outbox, Sum
from .forks import PerProcess

INTERVAL = 0.25  # seconds that events are gathered
MAX_SUMS = 10_000  # names and keys that are counted meanwhile
FULL = 2_000  # of them don't wait for the end of the interval
MAX_SAMPLES = 1_000  # events kept with their fields meanwhile
MAX_SUM_SAMPLES = 3  # of one name and key
AT_EXIT = 0.5  # seconds that the end of a process waits for the last batches
ATTEMPT = 1.0  # seconds that sending all may take, before what came meanwhile is looked at
RETRY = 0.05  # seconds between two attempts where a caller waits

Field = str | int | float | bool

logger = logging.getLogger("django_clusterstate.client")


class EventSender(PerProcess):
    """Counts events, and sends them by `client`. Safe to share between threads, and to use after a fork.

    `dropped` says how many events were lost, or may be: no room was left, or no owner answered in time.
    """

    def __init__(self, client: Client, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._reset()
        super().__init__()
        atexit.register(_at_exit, weakref.ref(self))

    def _reset(self) -> None:
        """Empty, with locks that nobody holds and without a thread, as a forked child is to be."""
        self._lock = threading.RLock()  # a signal's handler may track in the middle of another track()
        self._sums: dict[tuple[str, str], Sum] = {}
        self._samples = 0
        self._refused = 0
        self._told = 0
        self._wake: queue.SimpleQueue[bool] = queue.SimpleQueue()  # False: end
        self._thread: threading.Thread | None = None
        self._sending = threading.Lock()
        self._outbox = Outbox()

    @property
    def dropped(self) -> int:
        if getpid() != self.pid:
            self.reset_after_fork()
        return self._refused + self._outbox.dropped

    def track(self, name: str, key: str, times: int, fields: Mapping[str, Field]) -> None:
        """Counts an event. Its arguments are within the bounds."""
        if getpid() != self.pid:
            self.reset_after_fork()
        with self._lock:
            found = self._sums.get((name, key))
            if found is None:
                if len(self._sums) >= MAX_SUMS:
                    self._refused += times
                    return
                found = self._sums[name, key] = Sum(name, key, self._clock())
                self._begun(len(self._sums))
            found.times += times
            if len(found.samples) < MAX_SUM_SAMPLES and self._samples < MAX_SAMPLES:
                found.samples.append((self._clock(), fields))
                self._samples += 1

    def _begun(self, number: int) -> None:
        if number in (1, FULL):
            self._wake.put(True)
        if self._thread is None:
            thread = threading.Thread(target=self._run, args=(self._wake,), name="clusterstate-events", daemon=True)
            with contextlib.suppress(RuntimeError):  # the interpreter ends: what is left is sent at exit
                thread.start()
                self._thread = thread

    # -- sending --------------------------------------------------------------------------------------------

    def flush(self, timeout: float) -> bool:
        """Sends what was tracked until now. False if that isn't done within `timeout` seconds, or if some was lost."""
        if getpid() != self.pid:
            self.reset_after_fork()
        until, dropped = self._clock() + timeout, self.dropped
        while not self._send(until):
            if self._clock() + RETRY >= until:
                return False
            time.sleep(RETRY)
        return self.dropped == dropped

    def close(self) -> None:
        """Sends what there is, for half a second at most, and ends the thread. The tracker can be used again."""
        if getpid() != self.pid:
            self.reset_after_fork()
        with self._lock:
            thread, self._thread = self._thread, None
            self._wake.put(False)
            self._wake = queue.SimpleQueue()
        self._send(self._clock() + AT_EXIT)
        if thread is not None:
            thread.join(AT_EXIT)

    def _run(self, wake: "queue.SimpleQueue[bool]") -> None:
        while not self._outbox.empty or wake.get():
            with contextlib.suppress(queue.Empty):
                if not wake.get(timeout=INTERVAL):
                    return
            try:
                self._send(self._clock() + ATTEMPT)
            except Exception:  # a bug: the thread goes on, or nothing would be sent any more
                logger.exception("events could not be sent")

    def _send(self, until: float) -> bool:
        """One attempt to send all. True if nothing is left."""
        if not self._sending.acquire(timeout=max(0.0, until - self._clock())):
            return False
        try:
            with self._lock:
                sums, self._sums, self._samples = self._sums, {}, 0
            self._outbox.put(sums.values(), self._clock())
            if not self._outbox.empty:
                self._outbox.place(self._client.table())
                for batch in self._outbox.batches():
                    if self._clock() >= until:
                        break
                    self._outbox.send(batch, self._client.call_node, self._clock())
            self._tell()
            return self._outbox.empty
        finally:
            self._sending.release()

    def _tell(self) -> None:
        """Lets the nodes know of what was dropped, with the next request for the view."""
        dropped = self.dropped
        self._client.routing.untold.tally.events_dropped += dropped - self._told
        self._told = dropped


def _at_exit(reference: "weakref.ref[EventSender]") -> None:
    tracker = reference()
    if tracker is not None:
        tracker.close()
