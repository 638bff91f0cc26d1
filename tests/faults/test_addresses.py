"""Hosts that listen everywhere, names that lead nowhere, a DNS server that stalls."""

import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from testproject.processes import ROOT, Process, wait_until
from tests.faults.hosts import PORT, HostCluster, needs_hosts, run
from tests.faults.observing import SECONDS, status_of

pytestmark = [pytest.mark.fault, needs_hosts]

NAMES = ("a", "b", "c")
DEBIAN = "127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {host}\n"


class NamedHosts(HostCluster):
    """Hosts with a host name, /etc/hosts and /etc/resolv.conf of their own, and IPv6 addresses fd89::1 and so on."""

    def __init__(self, folder: Path, names: Iterable[str], binds: Mapping[str, str], *, v6: bool = False) -> None:
        super().__init__(folder, names)
        self.binds = binds
        self.v6 = v6
        self.resolvers: dict[str, str] = {}
        self.extra: dict[str, dict[str, str]] = {}
        if v6:
            self.discovery = ",".join(f"[{self.v6_address(name)}]:{PORT}" for name in self.names)

    def v6_address(self, name: str) -> str:
        return f"fd89::{self.names.index(name) + 1}"

    def _files(self, name: str) -> Path:
        """What `ip netns exec` puts over /etc."""
        return Path("/etc/netns") / self.host(name)

    def _make(self) -> None:
        super()._make()
        for name in self.names:
            run("ip", "-n", self.host(name), "addr", "add", f"{self.v6_address(name)}/64", "dev", "eth0", "nodad")
            if self.v6:
                run("ip", "-n", self.host(name), "addr", "del", f"{self.addresses[name]}/24", "dev", "eth0")
            self._files(name).mkdir(parents=True)
            (self._files(name) / "hosts").write_text(DEBIAN.format(host=f"host-{name}"))
            (self._files(name) / "resolv.conf").write_text(self.resolvers.get(name, ""))

    def __exit__(self, *exc_info: object) -> None:
        super().__exit__(*exc_info)
        for name in self.names:
            shutil.rmtree(self._files(name), ignore_errors=True)

    def on(self, name: str) -> tuple[str, ...]:
        command = 'hostname "$0" && exec "$@"'
        return (*super().on(name), "unshare", "--uts", "sh", "-c", command, f"host-{name}")

    def env(self, name: str) -> dict[str, str]:
        env = super().env(name) | self.extra.get(name, {})
        if name in self.binds:
            return {**env, "CLUSTERSTATE_BIND": self.binds[name]}
        return {key: value for key, value in env.items() if key != "CLUSTERSTATE_BIND"}

    def advertised(self) -> dict[str, str]:
        return {name: status_of(self, name).identity.address for name in self.names}

    def listed_on(self, name: str) -> str:
        """What `clusterstatus` finds on that host, by asking each node at the address that it advertises."""
        command = [*self.on(name), sys.executable, str(ROOT / "manage.py"), "clusterstatus", "--wait-for", "3"]
        done = subprocess.run(command, env=self.env(name), capture_output=True, text=True, timeout=60, check=False)
        return done.stdout + done.stderr

    def __enter__(self) -> "NamedHosts":
        super().__enter__()
        return self

    def all_meet(self) -> None:
        self.start()
        self.wait_for()
        for name in self.names:
            listed = self.listed_on(name)
            assert "all nodes agree" in listed, listed
            assert all(address in listed for address in self.advertised().values()), listed


def test_hosts_that_listen_on_all_ipv4_addresses_advertise_those_of_their_interfaces(folder: Path) -> None:
    with NamedHosts(folder, NAMES, dict.fromkeys(NAMES, "0.0.0.0:4370")) as cluster:
        cluster.all_meet()
        assert cluster.advertised() == {name: f"{address}:{PORT}" for name, address in cluster.addresses.items()}


@pytest.mark.parametrize("bind", ["[::]:4370", ":4370"])
def test_hosts_that_have_ipv6_alone_advertise_that(folder: Path, bind: str) -> None:
    with NamedHosts(folder, NAMES, dict.fromkeys(NAMES, bind), v6=True) as cluster:
        cluster.all_meet()
        assert cluster.advertised() == {name: f"[{cluster.v6_address(name)}]:{PORT}" for name in NAMES}


def test_a_host_with_both_that_listens_on_ipv6_advertises_ipv6(folder: Path) -> None:
    with NamedHosts(folder, NAMES, dict.fromkeys(NAMES, "[::]:4370")) as cluster:
        cluster.discovery = ",".join(f"[{cluster.v6_address(name)}]:{PORT}" for name in NAMES)
        cluster.all_meet()
        assert cluster.advertised() == {name: f"[{cluster.v6_address(name)}]:{PORT}" for name in NAMES}


def test_a_host_name_that_is_loopback_at_home_is_never_advertised(folder: Path) -> None:
    with NamedHosts(folder, NAMES, dict.fromkeys(NAMES, "0.0.0.0:4370")) as cluster:
        cluster.extra = {name: {"CLUSTERSTATE_ADVERTISE": f"host-{name}:4370"} for name in NAMES}
        cluster.all_meet()
        assert cluster.advertised() == {name: f"{address}:{PORT}" for name, address in cluster.addresses.items()}


def test_a_host_that_forgot_its_address_says_so(folder: Path) -> None:
    with NamedHosts(folder, NAMES, dict.fromkeys(("a", "b"), "0.0.0.0:4370")) as cluster:
        cluster.start()
        wait_until(lambda: "the two nodes would form two clusters" in _log(cluster, "c"), SECONDS, "said")
        assert "Set CLUSTERSTATE_BIND" in _log(cluster, "c")


def _log(cluster: HostCluster, name: str) -> str:
    return cluster.processes[name].output()


# -- a DNS server that stalls ---------------------------------------------------------------------------------------

DNS = """
import pathlib, socket, sys
stalled, addresses = pathlib.Path(sys.argv[1]), dict(item.split("=") for item in sys.argv[2:])
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("10.89.0.1", 53))
print("ready", flush=True)
while True:
    query, client = server.recvfrom(512)
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode())
        at += 1 + query[at]
    name, kind = ".".join(labels), query[at + 2]
    if stalled.exists():
        continue
    found = [socket.inet_aton(addresses[name])] if kind == 1 and name in addresses else []
    answers = b"".join(b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\1\\0\\4" + address for address in found)
    head = query[:2] + b"\\x81\\x80\\0\\1" + len(found).to_bytes(2, "big") + b"\\0\\0\\0\\0"
    server.sendto(head + query[12 : at + 5] + answers, client)
"""

ASKER = """
import asyncio, os, pathlib, sys, time
import django
django.setup()
from django.core.cache import cache
stalled = pathlib.Path(sys.argv[1])
async def aget(key):
    return await cache.aget(key)
def times(get):
    longest = 0.0
    for number in range(40):
        start = time.monotonic()
        get(f"key {number}")
        longest = max(longest, time.monotonic() - start)
    return longest
if len(sys.argv) > 2:
    cache.get("key")
    stalled.write_text("")
else:
    stalled.write_text("")
first = times(cache.get)
with asyncio.Runner() as runner:
    second = times(lambda key: runner.run(aget(key)))
print(f"{first:.3f} {second:.3f}")
"""


def _ask(cluster: NamedHosts, stalled: Path, *options: str, **env: str) -> tuple[float, float]:
    command = [*cluster.on("a"), sys.executable, "-c", ASKER, str(stalled), *options]
    whole = cluster.env("a") | {"PYTHONPATH": str(ROOT), "CLUSTERSTATE_DEADLINE": "0.1"} | env
    done = subprocess.run(command, env=whole, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.split()
    return float(first), float(second)


@pytest.fixture
def named(folder: Path) -> NamedHosts:
    cluster = NamedHosts(folder, ("a", "b"), dict.fromkeys(("a", "b"), "0.0.0.0:4370"))
    cluster.resolvers = dict.fromkeys(("a", "b"), "nameserver 10.89.0.1\noptions timeout:2 attempts:2\n")
    cluster.extra = {name: {"CLUSTERSTATE_ADVERTISE": f"{name}.example:4370"} for name in ("a", "b")}
    return cluster


def _serve_names(cluster: NamedHosts, stalled: Path) -> None:
    answers = [f"{name}.example={address}" for name, address in cluster.addresses.items()]
    command = [*cluster.on("a"), sys.executable, "-c", DNS, str(stalled), *answers]
    dns = cluster.processes["dns"] = Process(command, cluster.folder / "dns.log", cluster.env("a"))
    wait_until(lambda: "ready" in dns.output(), SECONDS, "a DNS server")


def test_requests_keep_their_deadline_while_dns_stalls(named: NamedHosts, folder: Path) -> None:
    stalled = folder / "stalled"
    with named as cluster:
        _serve_names(cluster, stalled)
        cluster.start("a", "b")
        cluster.wait_for("a", "b")
        blocking, asynchronous = _ask(cluster, stalled)
        assert cluster.agreed(("a", "b"))
    assert blocking < 0.5
    assert asynchronous < 0.5


def test_nodes_whose_list_has_names_meet_by_the_others_while_dns_stalls(named: NamedHosts, folder: Path) -> None:
    stalled = folder / "stalled"
    stalled.write_text("")
    with named as cluster:
        cluster.extra = {}
        cluster.discovery = f"a.example:4370,{cluster.discovery}"
        _serve_names(cluster, stalled)
        cluster.start("a", "b")
        cluster.wait_for("a", "b")
        said = "the name a.example was not resolved in time: the DNS server does not answer"
        wait_until(lambda: said in _log(cluster, "b"), SECONDS, "said")
        stalled.unlink()
        wait_until(lambda: "discovery recovered" in _log(cluster, "b"), SECONDS, "said")


def test_a_node_waits_for_the_address_that_it_is_to_advertise(named: NamedHosts, folder: Path) -> None:
    stalled = folder / "stalled"
    stalled.write_text("")
    with named as cluster:
        _serve_names(cluster, stalled)
        cluster.start("a", "b")
        wait_until(
            lambda: "the DNS server does not answer; the node starts once" in _log(cluster, "b"), SECONDS, "said"
        )
        stalled.unlink()
        cluster.wait_for("a", "b")
        assert cluster.advertised() == {name: f"{address}:{PORT}" for name, address in cluster.addresses.items()}


@pytest.mark.parametrize("known", [[], ["known"]], ids=["first asked", "known"])
def test_a_local_node_with_a_name_costs_no_more_than_the_deadline_while_dns_stalls(
    named: NamedHosts, folder: Path, known: list[str]
) -> None:
    stalled = folder / "stalled"
    with named as cluster:
        _serve_names(cluster, stalled)
        cluster.start("a", "b")
        cluster.wait_for("a", "b")
        local = {"CLUSTERSTATE_SOCKET": "a.example:4370"}
        blocking, asynchronous = _ask(cluster, stalled, *known, **local)
    assert blocking < 0.5
    assert asynchronous < 0.5
