"""Requesters that write, read, count, lock and hit limits, and know what a single memory would have answered them."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from django_clusterstate.core.rendezvous_hashing import Rendezvous
from tests.core.replication.simulation import LIMIT, UNAVAILABLE, DataSimulation, Request

STATIC = 100  # entries that are written at the beginning, and only read at the end
PAUSE = (0.005, 0.05)  # seconds between two requests of a requester
UNSENT = 0.03  # seconds from the answer to a change until it is sent, at most


@dataclass(eq=False)
class Workload:
    """`hosts` have a requester each of every kind. `exact`: nothing crashes and nothing is cut, so each answer is
    checked at once."""

    sim: DataSimulation
    hosts: list[str]
    keys: int = 20
    exact: bool = True
    running: bool = True
    allowed: dict[bytes, int] = field(default_factory=dict)
    counted: dict[bytes, int] = field(default_factory=dict)
    uncertain: dict[bytes, int] = field(default_factory=dict)
    holders: dict[bytes, bytes] = field(default_factory=dict)  # who holds a lock
    written: dict[bytes, bytes | None] = field(default_factory=dict)  # the last value known to be stored
    doubtful: set[bytes] = field(default_factory=set)  # keys of which a write had no answer
    unavailable: int = 0
    requests: int = 0
    missing: list[bytes] = field(default_factory=list)  # counters that have lost some
    changed: dict[bytes, list[float]] = field(default_factory=dict)  # when changes of counters and values were answered
    crashed_at: float = -1.0
    crashed: str = ""
    owners: Rendezvous | None = None  # before the crash

    def start(self) -> None:
        for number in range(STATIC):
            self._ask(self.hosts[0], "set", f"static:{number}".encode(), b"x", lambda _: None)
        for host in self.hosts:
            for act in (self._write, self._count, self._lock, self._hit):
                self._later(partial(act, host))

    def stop(self) -> None:
        self.running = False

    def _later(self, act: Any) -> None:
        if self.running:
            self.sim.at(self.sim.random.uniform(*PAUSE), act)

    def _ask(self, host: str, name: str, key: bytes, value: Any, then: Any) -> None:
        def answered(reply: Any) -> None:
            self.requests += 1
            self.unavailable += reply is UNAVAILABLE
            then(reply)

        self.sim.request(host, Request(name, key, value), answered)

    def _choose(self, kind: str, host: str = "") -> bytes:
        return f"{kind}:{host}{self.sim.random.randrange(self.keys)}".encode()

    # -- a host's own keys: it reads what it wrote ------------------------------------------------------------

    def _write(self, host: str) -> None:
        key = self._choose("own", f"{host}-")
        act = self.sim.random.choice(["set", "set", "delete", "get", "get", "get"])
        value = str(self.sim.random.random()).encode() if act == "set" else None

        def then(reply: Any) -> None:
            if act == "get":
                self._read(host, key, reply)
            elif reply is UNAVAILABLE:
                self.doubtful.add(key)
            else:
                self.doubtful.discard(key)
                self.written[key] = value
                self.changed.setdefault(key, []).append(self.sim.now)
            self._later(partial(self._write, host))

        self._ask(host, act, key, value, then)

    def _read(self, host: str, key: bytes, reply: Any) -> None:
        if self.exact and reply is not UNAVAILABLE and key not in self.doubtful:
            want = self.written.get(key)
            self.sim._hold(reply == want, f"{host} reads {reply!r} under {key!r}, but wrote {want!r}")

    # -- counters ---------------------------------------------------------------------------------------------

    def _count(self, host: str) -> None:
        key = self._choose("count")

        def then(reply: Any) -> None:
            book = self.uncertain if reply is UNAVAILABLE else self.counted
            book[key] = book.get(key, 0) + 1
            if reply is not UNAVAILABLE:
                self.changed.setdefault(key, []).append(self.sim.now)
            self._later(partial(self._count, host))

        self._ask(host, "incr", key, None, then)

    # -- locks ------------------------------------------------------------------------------------------------

    def _lock(self, host: str) -> None:
        key, token = self._choose("lock"), f"{host} {self.sim.random.random()}".encode()

        def got(reply: Any) -> None:
            if reply is UNAVAILABLE:
                self._ask(host, "unlock", key, token, lambda _: self._later(partial(self._lock, host)))
            elif not reply:
                self._later(partial(self._lock, host))
            else:
                other = self.holders.get(key)
                self.sim._hold(not self.exact or other is None, f"{token!r} and {other!r} hold {key!r}")
                self.holders[key] = token
                self.sim.at(self.sim.random.uniform(0.0, 0.3), release)

        def release() -> None:
            self.holders.pop(key, None)
            self._ask(host, "unlock", key, token, released)

        def released(reply: Any) -> None:
            if reply is not UNAVAILABLE:
                self.sim._hold(not self.exact or reply, f"{token!r} has lost {key!r}")
            self._later(partial(self._lock, host))

        self._ask(host, "add", key, token, got)

    # -- limits -----------------------------------------------------------------------------------------------

    def _hit(self, host: str) -> None:
        key = self._choose("limit")

        def then(reply: Any) -> None:
            if reply is True:
                self.allowed[key] = self.allowed.get(key, 0) + 1
                self.sim._hold(
                    not self.exact or self.allowed[key] <= LIMIT, f"{self.allowed[key]} hits of {key!r} pass"
                )
            self._later(partial(self._hit, host))

        self._ask(host, "hit", key, None, then)

    # -- the end ----------------------------------------------------------------------------------------------

    def crash(self, name: str, refused: bool = True) -> None:
        view = self.sim.nodes[name].membership.view
        self.crashed, self.crashed_at = name, self.sim.now
        self.owners = Rendezvous({member.name: member.weight for member in view.members})
        self.sim.crash(name, refused)

    def _excused(self, key: bytes, last: int | None = None) -> int:
        """How many of the last changes of a key its owner answered just before it crashed."""
        if self.owners is None or self.owners.owner(key) != self.crashed:
            return 0
        delay = self.sim.bus.delay[1]  # of the copy, and of the answer
        since, until = self.crashed_at - UNSENT - delay, self.crashed_at + delay
        changes = self.changed.get(key, [])
        return sum(since <= when <= until for when in (changes if last is None else changes[-last:]))

    def check(self) -> dict[str, int]:
        """Counts what was lost, once all is settled. `older`: losses that no crash just after the change explains."""
        lost = {"counts": 0, "doubled": 0, "entries": 0, "resurrected": 0, "older": 0}

        def read(name: str, key: bytes) -> Any:
            found: list[Any] = []
            host = self.sim.random.choice([node.name for node in self.sim.running])
            self.sim.views.pop(host, None)
            self.sim.request(host, Request(name, key), found.append)
            while not found:
                self.sim.run(0.01)
            return found[0]

        for key in {*self.counted, *self.uncertain}:
            value, least = read("get", key) or 0, self.counted.get(key, 0)
            lost["counts"] += max(least - value, 0)
            lost["older"] += max(least - value - self._excused(key), 0)
            if value < least:
                self.missing.append(key)
            lost["doubled"] += max(value - least - self.uncertain.get(key, 0), 0)
        for key, want in self.written.items():
            if key not in self.doubtful:
                value = read("get", key)
                lost["entries"] += want is not None and value is None
                lost["resurrected"] += value is not None and value != want
                lost["older"] += value != want and not self._excused(key, last=1)
        lost["static"] = sum(read("get", f"static:{number}".encode()) != b"x" for number in range(STATIC))
        return lost
