"""Tracked events of this process: summed by name and key, and sent to their owners by a thread.

`track()` only adds to a sum, so its caller waits for nothing. A sum is sent with the next batch, after at most INTERVAL
seconds. Only in uWSGI's master, which has no such thread, `track()` sends itself.
"""

import atexit
import contextlib
import queue
import threading
import time
import weakref
from collections.abc import Callable, Mapping

from .blocking import Client
from .event_batches import EventSum, Outbox
from .forks import PerProcess, is_uwsgi_master
from .log import logger

INTERVAL = 0.25  # seconds between two batches
MAX_SUMS = 10_000  # sums in one interval
SEND_AT = 2_000  # sums that are sent before the interval is over
MAX_SAMPLES = 1_000  # events kept with their fields in one interval
MAX_SUM_SAMPLES = 3  # events kept with their fields in one sum
EXIT_TIMEOUT = 0.5  # seconds that the end of a process waits for the last batches
SEND_TIMEOUT = 1.0  # seconds that the thread sends, before it takes new sums into account
RETRY_AFTER = 0.05  # seconds between two attempts of `flush()`

Field = str | int | float | bool


class EventSender(PerProcess):
    """Sums events, and sends them by `client`. Safe to share between threads, and to use after a fork."""

    def __init__(self, client: Client, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._reset()
        super().__init__()
        atexit.register(_at_exit, weakref.ref(self))

    def _reset(self) -> None:
        """Starts without events, thread and held locks."""
        self._lock = threading.RLock()  # reentrant, since a signal handler may track while it interrupts track()
        self._sums: dict[tuple[str, str], EventSum] = {}
        self._samples = 0
        self._refused = 0
        self._reported = 0  # dropped events that are in the counters of the routing
        self._wake: queue.SimpleQueue[bool] = queue.SimpleQueue()  # False ends the thread
        self._thread: threading.Thread | None = None
        self._sending = threading.Lock()
        self._outbox = Outbox()
        # It forks without the GIL: a worker that is forked while another thread holds it waits for it forever.
        self._without_thread = is_uwsgi_master()

    @property
    def dropped(self) -> int:
        """How many events were dropped, of which some may be counted: no room was left, or no owner replied in time."""
        self.reset_if_forked()
        return self._refused + self._outbox.dropped

    def track(self, name: str, key: str, times: int, fields: Mapping[str, Field]) -> None:
        """Adds an event, whose arguments were checked by the caller."""
        self.reset_if_forked()
        with self._lock:
            found = self._sums.get((name, key))
            if found is not None:
                found.times += times
            elif len(self._sums) < MAX_SUMS:
                found = self._start_sum(name, key, times)
            else:
                self._refused += times
                return
            if len(found.samples) < MAX_SUM_SAMPLES and self._samples < MAX_SAMPLES:
                found.add_sample(self._clock(), fields)
                self._samples += 1
        if self._without_thread:
            self._send(self._clock() + SEND_TIMEOUT)

    def flush(self, timeout: float) -> bool:
        """Sends all tracked events. False if that isn't done within `timeout` seconds, or if some were dropped."""
        self.reset_if_forked()
        until, dropped = self._clock() + timeout, self.dropped
        while not self._send(until):
            if self._clock() + RETRY_AFTER >= until:
                return False
            time.sleep(RETRY_AFTER)
        return self.dropped == dropped

    def close(self) -> None:
        """Sends all tracked events, for half a second at most, and ends the thread. The sender can be used again."""
        self.reset_if_forked()
        with self._lock:
            thread, self._thread = self._thread, None
            self._wake.put(False)
            self._wake = queue.SimpleQueue()
        self._send(self._clock() + EXIT_TIMEOUT)
        if thread is not None:
            thread.join(EXIT_TIMEOUT)

    def _start_sum(self, name: str, key: str, times: int) -> EventSum:
        made = EventSum(name, key, self._clock(), times)
        found = self._sums.setdefault((name, key), made)
        if found is not made:  # a signal handler was faster
            found.times += times
        self._wake_thread(len(self._sums))
        return found

    def _wake_thread(self, sums: int) -> None:
        """Wakes the thread for the first sum of an interval, and when many wait. Starts it if there is none."""
        if sums in (1, SEND_AT):
            self._wake.put(True)
        if self._thread is None and not self._without_thread:
            thread = threading.Thread(target=self._run, args=(self._wake,), name="clusterstate-events", daemon=True)
            self._thread = thread  # first, or a signal handler that tracks would start another one
            with contextlib.suppress(RuntimeError):  # the interpreter ends: the events are sent at exit
                try:
                    thread.start()
                except BaseException:
                    self._thread = None
                    raise

    def _run(self, wake: "queue.SimpleQueue[bool]") -> None:
        sent = True
        while not sent or wake.get():
            sent = False
            with contextlib.suppress(queue.Empty):
                if not wake.get(timeout=INTERVAL):
                    return
            try:
                sent = self._send(self._clock() + SEND_TIMEOUT)
            except Exception:  # a bug: the thread must go on, or no more events would be sent
                logger.exception("sending tracked events failed; retrying")

    def _send(self, until: float) -> bool:
        """Tries once to send all events. True if none are left."""
        if not self._sending.acquire(timeout=max(0.0, until - self._clock())):
            return False
        try:
            with self._lock:
                sums, self._sums, self._samples = self._sums, {}, 0
            self._outbox.put(sums.values(), self._clock())
            if not self._outbox.empty:
                self._outbox.assign(self._client.table())
                for batch in self._outbox.batches():
                    if self._clock() >= until:
                        break
                    self._outbox.send(batch, self._client.call_node, self._clock())
            dropped = self.dropped
            self._client.routing.stats.events_dropped += dropped - self._reported
            self._reported = dropped
            return self._outbox.empty
        finally:
            self._sending.release()


def _at_exit(reference: "weakref.ref[EventSender]") -> None:
    sender = reference()
    if sender is not None:
        sender.close()
