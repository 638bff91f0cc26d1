"""Nodes and sites as real processes on this machine: for the demonstration, the tests and the benchmark."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from django_clusterstate.client.blocking import Client
from django_clusterstate.client.dialing import Dialer
from django_clusterstate.client.routing import Routing
from django_clusterstate.exceptions import ClusterStateError
from django_clusterstate.wire.address import UnixAddress
from django_clusterstate.wire.messages import GetStatus, StatusReply, request_frame

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 60.0
STOP_SECONDS = 20.0  # a node that leaves hands over for up to 10 s, and forwards late requests for 2 s
SERVER_PORTS = (12_000, 32_000)  # Linux gives clients those from 32,768 on
BLOCK = 200  # ports; a hundred processes can each have a block

_GET_STATUS = request_frame(GetStatus())


def free_port() -> int:
    """A port of the loopback interface that nobody uses, and that nobody else is given while this process runs.

    None of those that the system gives to clients: one of them might have it before the server that it is for, and a
    client that tries it meanwhile might even be connected to itself.
    """
    return next(_own_ports)


def _draw_ports() -> Iterator[int]:
    """From blocks that are this process's own: it has bound the first port of each, which no other can then."""
    first_ports = range(*SERVER_PORTS, BLOCK)
    with ExitStack() as claims:  # until this process ends
        for first in random.sample(first_ports, len(first_ports)):
            claim = claims.enter_context(socket.socket())
            try:
                claim.bind(("127.0.0.1", first))
            except OSError:
                continue
            yield from filter(is_free, range(first + 1, first + BLOCK))
        raise RuntimeError("All ports are used, or claimed by other processes.")


_own_ports = _draw_ports()


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def wait_until(condition: Callable[[], bool], seconds: float, what: str, every: float = 0.01) -> float:
    """Checks a condition each `every` seconds. Returns the seconds it took. Raises `TimeoutError`, naming `what`,
    when it doesn't come true in time."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > seconds:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(every)
    return time.monotonic() - start


class Process:
    """One child process with its output in a file. Ended by its own id, nobody else's."""

    def __init__(self, command: Sequence[str], log: Path, env: Mapping[str, str], cwd: Path = ROOT) -> None:
        self.log = log
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=cwd,
                env=dict(env),
                start_new_session=True,  # Ctrl-C in the terminal is for whoever started it, who then stops it
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def signal(self, number: int) -> None:
        self._popen.send_signal(number)

    def wait(self, seconds: float) -> int:
        return self._popen.wait(seconds)

    def kill(self) -> None:
        self._popen.kill()
        self._popen.wait()

    @property
    def processor_seconds(self) -> float:
        """The processor time that it has used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """SIGTERM, and SIGKILL if that doesn't do."""
        if self.running:
            self._popen.terminate()
            try:
                self._popen.wait(seconds)
            except subprocess.TimeoutExpired:
                self.kill()


class LocalCluster:
    """Nodes by name, each with a unix socket and a log file in `folder`. A context manager that kills what is left."""

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        *,
        ports: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
        discovery: str = "",
        deadline: float = 1.0,
    ) -> None:
        self.folder = folder
        self.names = list(names)
        self.ports = dict(zip(self.names, ports or [free_port() for _ in names], strict=True))
        # Without a database: each node is told of the first few.
        self.discovery = discovery or ",".join(f"127.0.0.1:{port}" for port in list(self.ports.values())[:3])
        self.processes: dict[str, Process] = {}
        self._env = {**os.environ, "DJANGO_SETTINGS_MODULE": "testproject.settings", **(env or {})}
        self._clients: dict[str, Client] = {}
        self._deadline = deadline  # seconds within which a node has to tell its status

    def socket(self, name: str) -> Path:
        return self.folder / f"{name}.sock"

    def env(self, name: str) -> dict[str, str]:
        """What a process needs in its environment to use this node as its host's."""
        return {
            **self._env,
            "CLUSTERSTATE_NODE_NAME": name,
            "CLUSTERSTATE_BIND": f"127.0.0.1:{self.ports[name]}",
            "CLUSTERSTATE_SOCKET": str(self.socket(name)),
            "CLUSTERSTATE_DISCOVERY": self.discovery,
        }

    def start(self, *names: str) -> None:
        """Starts the named nodes, or all."""
        for name in names or self.names:
            command = [sys.executable, str(ROOT / "manage.py"), "clusternode"]
            self.processes[name] = Process(command, self.folder / f"{name}.log", self.env(name))

    def status(self, name: str) -> StatusReply | None:
        """What the node says of itself and the others; None when it doesn't answer."""
        client = self._clients.setdefault(
            name, Client(Routing(UnixAddress(str(self.socket(name)))), Dialer((), self._deadline))
        )
        client.routing.local.failures = 0  # we look again and again, and want no breaker to stop us
        try:
            reply = client.call_node(client.routing.local, _GET_STATUS)
        except ClusterStateError:
            return None
        return reply if isinstance(reply, StatusReply) else None

    def agreed(self, names: Sequence[str]) -> bool:
        """Whether these nodes, and no others, serve, and all have the same view."""
        return _agree([self.status(name) for name in names])

    def synced(self, names: Sequence[str]) -> bool:
        """Whether these nodes, and no others, serve, and each key has a complete backup."""
        statuses = [self.status(name) for name in names]
        return _agree(statuses) and all(status is not None and status.copies.synced for status in statuses)

    def wait_for(self, *names: str, seconds: float = START_SECONDS) -> float:
        """Waits until the named nodes, or all, are one cluster. Returns the seconds it took. Raises `TimeoutError` with
        the end of their logs."""
        return self._wait(self.agreed, "a cluster of", names, seconds)

    def wait_until_synced(self, *names: str, seconds: float = START_SECONDS, every: float = 0.01) -> float:
        """Waits as `wait_for`, and until each key has a complete backup."""
        return self._wait(self.synced, "copies on", names, seconds, every)

    def _wait(
        self,
        condition: Callable[[Sequence[str]], bool],
        what: str,
        names: Sequence[str],
        seconds: float,
        every: float = 0.01,
    ) -> float:
        wanted = names or tuple(self.names)
        try:
            return wait_until(lambda: condition(wanted), seconds, f"{what} {', '.join(wanted)}", every)
        except TimeoutError as error:
            logs = "\n".join(f"--- {name}\n{self.processes[name].output()[-2000:]}" for name in self.processes)
            raise TimeoutError(f"{error}\n{logs}") from None

    def kill(self, name: str) -> None:
        self.processes[name].kill()

    def stop(self) -> None:
        """Lets them leave, all at once, since each serves on for a while after it was told."""
        for process in self.processes.values():
            if process.running:
                process.signal(signal.SIGTERM)
        for process in self.processes.values():
            process.stop()

    def __enter__(self) -> "LocalCluster":
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process in self.processes.values():
            process.kill()
        for client in self._clients.values():
            client.close()


def _agree(statuses: Sequence[StatusReply | None]) -> bool:
    return len({status.epoch for status in statuses if status is not None}) == 1 and all(
        status is not None and status.state == "alive" and _serving(status) == len(statuses) for status in statuses
    )


def _serving(status: StatusReply) -> int:
    others = sum(member.state in ("alive", "suspect") for member in status.members)
    return others + (status.state == "alive")
