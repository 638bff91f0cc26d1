"""The steps of a deploy: nodes that are restarted, added and replaced one after the other."""

import signal
from collections.abc import Sequence

from testproject.processes import LocalCluster, free_port

SECONDS = 120.0
LOOK = 0.1  # seconds between two looks at the nodes, which have other things to do


def nodes(count: int) -> tuple[str, ...]:
    return tuple(f"n{number}" for number in range(count))


def wait_until_synced(cluster: LocalCluster, *names: str) -> None:
    """Waits until these nodes, or all, are one cluster in which each key has its backup."""
    cluster.wait_until_synced(*names, seconds=SECONDS, every=LOOK)


def leave(cluster: LocalCluster, *names: str) -> None:
    """Ends nodes in an orderly way, all at once."""
    for name in names:
        cluster.processes[name].signal(signal.SIGTERM)
    for name in names:
        assert cluster.processes[name].wait(SECONDS) == 0


def restart(cluster: LocalCluster, name: str) -> None:
    """Ends a node in an orderly way, and starts it again under its name."""
    leave(cluster, name)
    cluster.start(name)
    wait_until_synced(cluster)


def add(cluster: LocalCluster, name: str) -> None:
    """Starts a further node, and doesn't wait for it."""
    cluster.names.append(name)
    cluster.ports[name] = free_port()
    cluster.discovery = ",".join(f"127.0.0.1:{cluster.ports[known]}" for known in cluster.names[-3:])
    cluster.start(name)


def remove(cluster: LocalCluster, name: str) -> None:
    """Ends a node in an orderly way, for good."""
    cluster.names.remove(name)
    leave(cluster, name)
    wait_until_synced(cluster)


def replace(cluster: LocalCluster, name: str, by: str) -> None:
    """Starts a node under a new name, and ends an old one once the new one is synced."""
    add(cluster, by)
    wait_until_synced(cluster)
    remove(cluster, name)


def others(cluster: LocalCluster, *names: str) -> Sequence[str]:
    """The nodes that stay when these go."""
    return [name for name in cluster.names if name not in names]
