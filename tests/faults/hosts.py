"""Hosts on one machine: network namespaces joined by a bridge, a node as a real process in each. Needs root."""

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from testproject.processes import ROOT, LocalCluster, Process

PORT = 4370
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def why_not() -> str:
    """Why hosts can't be made here; empty when they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program, package in (("ip", "iproute2"), ("iptables", "iptables")):
        if shutil.which(program, path=_PATH) is None:
            return f"needs {program} (Debian: apt-get install {package})"
    return ""


needs_hosts = pytest.mark.skipif(bool(why_not()), reason=why_not() or "hosts can be made")


def run(*command: str, check: bool = True) -> str:
    env = os.environ | {"PATH": _PATH}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=20, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    return done.stdout


class HostCluster(LocalCluster):
    """A `LocalCluster` whose nodes are on hosts of their own, 10.89.0.1 and so on. Their unix sockets are reached as
    before, since hosts share the file system; so the faults of the network don't touch the test's own questions."""

    def __init__(self, folder: Path, names: Iterable[str], env: Mapping[str, str] | None = None) -> None:
        names = list(names)
        secret = {"CLUSTERSTATE_SECRET": "what the hosts of these tests know " * 2}
        super().__init__(folder, names, ports=[PORT] * len(names), env={**secret, **(env or {})})
        self.addresses = {name: f"10.89.0.{number}" for number, name in enumerate(names, start=1)}
        self.discovery = ",".join(f"{address}:{PORT}" for address in self.addresses.values())
        self._tag = f"cs{secrets.token_hex(3)}"
        self._bridge = f"{self._tag}br"

    def host(self, name: str) -> str:
        """The name of the network namespace."""
        return f"{self._tag}-{name}"

    def on(self, name: str) -> tuple[str, ...]:
        """What stands before a command that is to run there."""
        return ("ip", "netns", "exec", self.host(name))

    def _outside(self, name: str) -> str:
        """The bridge's end of the host's cable. A name of a link has 15 characters at most."""
        return f"{self._tag}v{self.names.index(name)}"

    def __enter__(self) -> "HostCluster":
        try:
            self._make()
        except BaseException:
            self.__exit__(None, None, None)  # what there is of it
            raise
        return self

    def _make(self) -> None:
        run("ip", "link", "add", self._bridge, "type", "bridge")
        run("ip", "link", "set", self._bridge, "up")
        for name, address in self.addresses.items():
            host, outside = self.host(name), self._outside(name)
            run("ip", "netns", "add", host)
            run("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", host)
            run("ip", "link", "set", outside, "master", self._bridge, "up")
            run("ip", "-n", host, "addr", "add", f"{address}/24", "dev", "eth0")
            run("ip", "-n", host, "link", "set", "eth0", "up")
            run("ip", "-n", host, "link", "set", "lo", "up")

    def __exit__(self, *exc_info: object) -> None:
        super().__exit__(*exc_info)
        for name in self.names:
            run("ip", "link", "del", self._outside(name), check=False)
            run("ip", "netns", "del", self.host(name), check=False)
        run("ip", "link", "del", self._bridge, check=False)

    def env(self, name: str) -> dict[str, str]:
        return {**super().env(name), "CLUSTERSTATE_BIND": f"{self.addresses[name]}:{PORT}", "PATH": _PATH}

    def start(self, *names: str) -> None:
        for name in names or self.names:
            command = [*self.on(name), sys.executable, str(ROOT / "manage.py"), "clusternode"]
            self.processes[name] = Process(command, self.folder / f"{name}.log", self.env(name))

    # -- faults -----------------------------------------------------------------------------------------------

    def drop(self, name: str, *sources: str, add: bool = True) -> None:
        """What comes from these hosts doesn't arrive at this one any more."""
        for source in sources:
            rule = ("INPUT", "-s", self.addresses[source], "-j", "DROP")
            run(*self.on(name), "iptables", "-A" if add else "-D", *rule)

    def lose(self, probability: float) -> None:
        """Each packet that arrives anywhere is lost with this probability."""
        rule = ("-A", "INPUT", "-i", "eth0", "-m", "statistic", "--mode", "random", "--probability", str(probability))
        for name in self.names:
            run(*self.on(name), "iptables", *rule, "-j", "DROP")

    def silence(self, name: str, *, over: bool = False) -> None:
        """The host is lost, or back: no packet comes from it or reaches it."""
        for chain, way in (("INPUT", "-i"), ("OUTPUT", "-o")):
            run(*self.on(name), "iptables", "-D" if over else "-A", chain, way, "eth0", "-j", "DROP")

    def cut_link(self, one: str, other: str, *, restore: bool = False) -> None:
        """Neither of the two hears the other."""
        self.drop(one, other, add=not restore)
        self.drop(other, one, add=not restore)

    def split(self, *sides: Iterable[str]) -> None:
        """A partition: each side hears only itself."""
        for side in sides:
            for other in sides:
                if side is not other:
                    for name in side:
                        self.drop(name, *other)

    def heal(self) -> None:
        for name in self.names:
            run(*self.on(name), "iptables", "-F", "INPUT")
