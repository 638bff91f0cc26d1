"""`python -m bench.membership`: what membership costs a node, against the number of members.

One real node, and a crowd of others played by this process with real messages: each listens, is dialed by the node and
answers, dials it twice, and sends a signed heartbeat every half second. The node's CPU time is the kernel's.
"""

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path

import msgspec

from django_clusterstate.core.membership.gossip import OBSERVATIONS
from django_clusterstate.core.membership.heartbeat import Heartbeat, Identity, MemberState, Observation
from django_clusterstate.node.heartbeat import encode_heartbeat
from django_clusterstate.wire import messages as wire
from django_clusterstate.wire.address import parse_tcp
from django_clusterstate.wire.aio import AsyncConnection, connect
from django_clusterstate.wire.derived_keys import derive_heartbeat_keys, derive_link_keys
from django_clusterstate.wire.framing import MAX_FRAME, Deframer, frame
from django_clusterstate.wire.handshake import Hello, NodeHandshake, Role
from testproject.processes import LocalCluster, wait_until

SECRET = "what the benchmark and its node know " * 2
LINK_KEYS = derive_link_keys([SECRET], "default")
CHANNEL_KEYS = derive_heartbeat_keys([SECRET], "default")
GROUP = "clusterstate.default"
INTERVAL = 0.5
NODE = "real"


class Pretender(asyncio.Protocol):
    """The listening side of a played member: shakes hands, and reads what it is sent."""

    def __init__(self, identity: Identity) -> None:
        self._handshake = NodeHandshake(LINK_KEYS, identity.name, identity.boot)
        self._deframer = Deframer(MAX_FRAME)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        transport.write(frame(self._handshake.challenge))

    def data_received(self, data: bytes) -> None:
        if self._handshake.session is not None:
            self._deframer.feed(self._handshake.session[1].feed(data))
            return
        for payload in self._deframer.feed(data):
            self._transport.write(frame(self._handshake.receive(payload)))


class Member:
    """A played member. `others` are observed in its heartbeats, as a real one's are."""

    def __init__(self, number: int, node_address: str) -> None:
        self._number = number
        self._node = parse_tcp(node_address)
        self._sequence = 0
        self._links: list[AsyncConnection] = []  # the first is for heartbeats
        self.identity = Identity("played", bytes(16), "127.0.0.1:1")  # until it listens

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Pretender(self.identity), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        self.identity = Identity(f"played-{self._number:04}", os.urandom(16), f"127.0.0.1:{port}")
        me = self.identity
        hello = Hello(Role.NODE, name=me.name, boot=me.boot, address=me.address)
        self._links = [await connect(self._node, LINK_KEYS, 5.0, hello=hello) for _ in range(2)]

    def beat(self, others: list[Identity]) -> None:
        self._sequence += 1
        first = self._sequence * OBSERVATIONS
        observed = [others[(first + step) % len(others)] for step in range(min(OBSERVATIONS, len(others)))]
        observations = tuple(Observation(o.name, o.boot, o.address, MemberState.ALIVE, 0, 0.1) for o in observed)
        beat = Heartbeat(self.identity, 0, self._sequence, MemberState.ALIVE, 1, observations, "")
        payload = msgspec.msgpack.encode(encode_heartbeat(beat, CHANNEL_KEYS))
        self._links[0].cast(wire.request_frame(wire.Deliver(GROUP, payload, 60, 100)))


async def crowd(
    size: int, node_address: str, seconds: float, cpu: list[float], pid: int, cluster: LocalCluster
) -> None:
    """Plays the others, and notes the node's CPU seconds at the start and the end of the time measured."""
    members = [Member(number, node_address) for number in range(size - 1)]
    for member in members:
        await member.start()
    identities = [member.identity for member in members]
    until = 0.0
    while not until or time.monotonic() < until:
        begun = time.monotonic()
        for number, member in enumerate(members):
            member.beat(identities)
            due = begun + INTERVAL * (number + 1) / len(members)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        if not until:
            status = await asyncio.to_thread(cluster.status, NODE)
            if status is not None and sum(m.state is MemberState.ALIVE for m in status.members) == size - 1:
                cpu.append(cpu_seconds(pid))
                until = time.monotonic() + seconds
    cpu.append(cpu_seconds(pid))


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, by the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(size: int, seconds: float) -> float:
    """The share of a core that a node among `size` members spends when nobody asks it for anything."""
    env = {"CLUSTERSTATE_SECRET": SECRET}
    with tempfile.TemporaryDirectory(prefix="cs-") as folder, LocalCluster(Path(folder), [NODE], env=env) as cluster:
        cluster.start()
        cluster.wait_for()
        pid = cluster.processes[NODE].pid
        cpu: list[float] = []
        if size == 1:
            cpu.append(cpu_seconds(pid))
            time.sleep(seconds)
            cpu.append(cpu_seconds(pid))
        else:
            asyncio.run(crowd(size, f"127.0.0.1:{cluster.ports[NODE]}", seconds, cpu, pid, cluster))
        wait_until(lambda: cluster.status(NODE) is not None, 5, "the node still answers")
        return (cpu[1] - cpu[0]) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.membership", description=__doc__)
    parser.add_argument("--sizes", default="1,3,10,30,100", help="numbers of members; default: %(default)s")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each; default: %(default)g")
    options = parser.parse_args()
    print(f"{'members':>8}{'% of a core':>14}{'us a heartbeat heard':>23}")
    base = 0.0
    for size in map(int, options.sizes.split(",")):
        share = measure(size, options.seconds)
        base = share if size == 1 else base
        per_beat = (share - base) / (size - 1) * INTERVAL * 1e6 if size > 1 else 0.0
        print(f"{size:8}{share * 100:14.2f}{per_beat:23.0f}", flush=True)


if __name__ == "__main__":
    main()
