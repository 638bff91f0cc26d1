"""Deadlines under gevent and eventlet, whose sockets never block in the kernel, and under threads."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from testproject.processes import ROOT, LocalCluster, Process, free_port, wait_until
from tests.timing import check_seconds

NAMES = ("alpha", "beta", "gamma")
DEADLINE = 0.25
KEYS, CONCURRENT = 60, 20


@pytest.fixture
def nodes(folder: Path) -> Iterator[LocalCluster]:
    with LocalCluster(folder, NAMES, env={"CLUSTERSTATE_DEADLINE": str(DEADLINE)}) as nodes:
        nodes.start()
        nodes.wait_for()
        yield nodes
        for process in nodes.processes.values():
            process.signal(signal.SIGCONT)


class GeventProcess:
    """`tests.gevent_process` as a process."""

    def __init__(self, nodes: LocalCluster, *arguments: str) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "tests.gevent_process", *arguments]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=nodes.env("alpha"), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __enter__(self) -> "GeventProcess":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.communicate()

    def line(self) -> dict[str, Any]:
        """Within some seconds, or the process has hung."""
        assert self._process.stdout is not None
        with ThreadPoolExecutor(1) as threads:
            try:
                said = threads.submit(self._process.stdout.readline).result(20)
            except TimeoutError:
                self._process.kill()
                raise
        line: dict[str, Any] = json.loads(said)
        return line

    def go_on(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()


@pytest.mark.parametrize("stopped", ["beta", "alpha"])
@pytest.mark.parametrize("arguments", [["threads"], ["gevent"], ["gevent", "late"], ["eventlet"]], ids=" ".join)
@pytest.mark.timing(alone=True)
def test_deadlines_hold_though_a_node_is_stopped(nodes: LocalCluster, arguments: list[str], stopped: str) -> None:
    with GeventProcess(nodes, *arguments) as process:
        line = process.line()
        assert (line["found"], line["many"], line["flushed"]) == (KEYS, KEYS, True)
        nodes.processes[stopped].signal(signal.SIGSTOP)
        process.go_on()
        line = process.line()
        check_seconds(line["slowest"], below=4 * DEADLINE + 0.5)
        assert KEYS > line["many"] > 0
        nodes.processes[stopped].signal(signal.SIGCONT)


# -- gunicorn -----------------------------------------------------------------------------------------------------


@contextmanager
def gunicorn(nodes: LocalCluster, folder: Path) -> Iterator[str]:
    address = f"127.0.0.1:{free_port()}"
    options = ["-k", "gevent", "-w", "1", "--bind", address, "--timeout", "10", "tests.gevent_site"]
    process = Process([sys.executable, "-m", "gunicorn", *options], folder / "gunicorn.log", nodes.env("alpha"))
    try:
        wait_until(lambda: answers(address), 60, "gunicorn answers")
        yield address
    finally:
        process.stop()
        print(process.output())


def answers(address: str) -> bool:
    try:
        ask(address)
    except OSError:
        return False
    return True


def ask(address: str, query: str = "") -> tuple[float, dict[str, Any]]:
    start = time.monotonic()
    with urlopen(f"http://{address}/?{query}", timeout=60) as answer:
        said: dict[str, Any] = json.load(answer)
    return time.monotonic() - start, said


@pytest.mark.timing(alone=True)
def test_site_of_gunicorn_with_gevent_answers_though_a_node_is_stopped(nodes: LocalCluster, folder: Path) -> None:
    keys = [f"green-{number}" for number in range(30)]
    with gunicorn(nodes, folder) as address, ThreadPoolExecutor(30) as clients:
        for key in keys:
            assert ask(address, f"key={key}")[1]["patched"]
        owners = {key: ask(address, f"key={key}")[1]["owner"] for key in keys}
        assert set(owners.values()) == set(NAMES)
        nodes.processes["beta"].signal(signal.SIGSTOP)
        asked = {key: clients.submit(ask, address, f"key={key}") for key in keys}
        took = {key: answer.result()[0] for key, answer in asked.items()}
        check_seconds(max(took.values()), below=DEADLINE + 0.5)
        # While some wait for the stopped node, the others are served.
        check_seconds(max(seconds for key, seconds in took.items() if owners[key] != "beta"), below=DEADLINE)
        many, _ = ask(address, "&".join(f"key={key}" for key in keys))
        check_seconds(many, below=2 * DEADLINE + 0.5)
