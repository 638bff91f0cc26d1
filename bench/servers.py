"""What is measured, as processes of this machine: our nodes, Redis, Memcached, and two bare peers."""

import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from testproject.processes import LocalCluster, Process, free_port, wait_until

SECRET_KEY = "of-the-benchmark-and-nothing-else-0123456789-abcdefghijklmnop"
NODES = ("one", "two", "three")
HOST = "127.0.0.1"
START_SECONDS = 10.0


class Servers:
    """A context manager: starts all that is installed, and stops it by its process ids.

    `redis` and `memcached` say whether the program was found; the addresses are valid only then.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="clusterstate-bench-")))
        self._processes: list[Process] = []
        self._env = {key: value for key, value in os.environ.items() if not key.startswith("CLUSTERSTATE_")}
        self.redis = shutil.which("redis-server")
        self.memcached = shutil.which("memcached")
        self.redis_port, self.memcached_port, self.peer_port = free_port(), free_port(), free_port()
        self.redis_socket = str(self.folder / "redis.sock")
        self.memcached_socket = str(self.folder / "memcached.sock")
        self.peer_socket = str(self.folder / "peer.sock")
        # The nodes as a user gets them, whatever this process's own environment says.
        node_env = {"DJANGO_SETTINGS_MODULE": "testproject.settings", "DEMO_RUN_DIR": str(self.folder)}
        self.cluster = LocalCluster(self.folder, NODES, env={**node_env, "SECRET_KEY": SECRET_KEY})

    def __enter__(self) -> "Servers":
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def environment(self) -> dict[str, str]:
        """What makes this process a requester on the host of the first node."""
        env = self.cluster.env(NODES[0])
        return {key: value for key, value in env.items() if key.startswith("CLUSTERSTATE_")}

    def pids(self) -> list[int]:
        return [process.pid for process in (*self.cluster.processes.values(), *self._processes)]

    def _start(self) -> None:
        self._stack.enter_context(self.cluster)
        self.cluster.start()
        peer = [sys.executable, "-m", "bench.peer"]
        self._run([*peer, "unix", self.peer_socket], self.peer_socket)
        self._run([*peer, "tcp", str(self.peer_port)], self.peer_port)
        if self.redis:
            persist_nothing = ["--save", "", "--appendonly", "no", "--dir", str(self.folder)]
            listen = ["--bind", HOST, "--port", str(self.redis_port), "--unixsocket", self.redis_socket]
            self._run([self.redis, *listen, *persist_nothing], self.redis_port)
        if self.memcached:
            user = ["-u", "root"] if os.geteuid() == 0 else []
            self._run([self.memcached, *user, "-l", HOST, "-p", str(self.memcached_port)], self.memcached_port)
            self._run([self.memcached, *user, "-s", self.memcached_socket], self.memcached_socket)
        self.cluster.wait_for()

    def _run(self, command: list[str], address: str | int) -> None:
        """Starts a program and waits until it accepts connections at a port or a path."""
        log = self.folder / f"{Path(command[0]).name}-{Path(str(address)).name}.log"
        process = Process(command, log, self._env)
        self._stack.callback(process.stop)
        self._processes.append(process)
        wait_until(_accepts(address), START_SECONDS, f"an answer from {' '.join(command)}")


def _accepts(address: str | int) -> Callable[[], bool]:
    def accepts() -> bool:
        with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as probe:
            return probe.connect_ex(address if isinstance(address, str) else (HOST, address)) == 0

    return accepts
