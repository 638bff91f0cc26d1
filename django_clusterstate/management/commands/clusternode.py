"""`manage.py clusternode`: runs this host's node."""

import asyncio
import logging
import os
import resource
import signal
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

from channels.layers import channel_layers
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError
from django.db import connections
from django.dispatch import Signal

from ... import runtime, signals
from ...cache.alias_quotas import read_quotas
from ...checks import check_addresses, check_channel_layer
from ...core.membership.members import Change
from ...core.membership.membership import Membership
from ...core.membership.timeline import EventKind
from ...database_discovery import make_discovery, table_problem
from ...node.advertise import AddressWatch, Finder, wait_for_address
from ...node.config import NodeConfig, NodeError
from ...node.log import RateLimitedLog, logger
from ...node.membership_changes import Isolated, Notification, ViewChanged, what_happened
from ...node.metrics_server import serve_metrics
from ...node.node import Node
from ...node.redis_pubsub import PubSubLayer
from ...settings import Settings
from ...wire.address import TcpAddress, parse_tcp

# (option, the entry of CLUSTERSTATE that it overrides, placeholder, help)
OPTIONS = (
    ("name", "NODE_NAME", "NAME", "the node's name, unique in the cluster (default: the host name)"),
    ("bind", "BIND", "HOST:PORT", "the address to listen at for other hosts"),
    ("advertise", "ADVERTISE", "HOST:PORT", "the address that other hosts connect to"),
    ("socket", "SOCKET", "PATH", "the unix socket for processes on this host"),
    ("discovery", "DISCOVERY", "WHERE", "'database', 'dns://NAME:PORT' or 'HOST:PORT,HOST:PORT'"),
)
_SIGNALS: dict[EventKind, Signal] = {
    EventKind.JOINED: signals.member_up,
    EventKind.SUSPECTED: signals.member_suspect,
    EventKind.DOWN: signals.member_down,
    EventKind.LEFT: signals.member_left,
}
_QUEUED_EVENTS = 10_000
PUBSUB_LAYER = "channels_redis.pubsub.RedisPubSubChannelLayer"
MISSED_BEATS = 4  # missed heartbeats of this node, after which a dead connection of the layer is replaced


class Command(BaseCommand):
    help = "Runs this host's node of the cluster. Stops on SIGTERM or Ctrl-C, at once on the second one."
    requires_system_checks = ()  # the node must start where a web process's check would fail

    def add_arguments(self, parser: ArgumentParser) -> None:
        for option, _, placeholder, text in OPTIONS:
            parser.add_argument(f"--{option}", metavar=placeholder, help=text)
        parser.add_argument(
            "--metrics-port", type=int, metavar="PORT", help="serve metrics for Prometheus at this port"
        )
        parser.add_argument(
            "--metrics-address", default="127.0.0.1", metavar="HOST", help="for --metrics-port (default: %(default)s)"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        _set_up_logging()
        try:
            settings = runtime.use_options({entry: options[option] for option, entry, *_ in OPTIONS if options[option]})
            _refuse_weak_secret(settings)
            while True:
                watch = _find_address(settings)
                node = _make_node(settings, watch.address)
                _run(node, watch, _metrics(node, options["metrics_address"], options["metrics_port"]))
                if not node.superseded:
                    break
        except (ImproperlyConfigured, NodeError, ValueError) as error:
            raise CommandError(str(error)) from error


def _refuse_weak_secret(settings: Settings) -> None:
    for address in (settings.bind, settings.socket):
        if settings.secret_problem and isinstance(address, TcpAddress) and not address.is_loopback:
            raise NodeError(
                f"The secret is too weak for {address}, which other hosts can reach: {settings.secret_problem}. "
                "Set CLUSTERSTATE_SECRET to a long random string, the same on each host."
            )


def _find_address(settings: Settings) -> AddressWatch:
    for problem in check_addresses(settings):
        logger.warning("setting: %s", f"{problem.msg} {problem.hint}")
    discovery = make_discovery(settings.discovery, settings.node_name, settings.cluster, str(settings.bind))
    finder = Finder(settings.bind, settings.advertise, discovery.configured)
    return AddressWatch(finder, wait_for_address(finder))


def _make_node(settings: Settings, advertise: TcpAddress) -> Node:
    config = NodeConfig(
        name=settings.node_name,
        cluster=settings.cluster,
        bind=settings.bind,
        advertise=advertise,
        socket=settings.socket,
        link_keys=settings.link_keys,
        channel_keys=settings.channel_keys,
        timings=settings.timings,
        weight=settings.weight,
        cache_max_bytes=settings.cache_max_bytes,
        cache_own_bytes=read_quotas(settings.cache_max_bytes),
        limits_max_bytes=settings.limits_max_bytes,
        deadline=settings.deadline,
        backups=settings.backups,
        drain=settings.drain,
    )
    discovery = None
    if settings.channel_layer is None or settings.discovery != "database":
        if settings.discovery == "database":
            _check_migrated()
        discovery = make_discovery(settings.discovery, config.name, config.cluster, str(config.advertise))
    return Node(config, os.urandom(16), _channel_layer(settings), discovery, SignalSender())


def _check_migrated() -> None:
    """Raises `NodeError` if the table doesn't exist. The node starts with a database that is locked or unreachable, and
    retries for as long as it runs."""
    problem, missing = table_problem()
    if missing:
        raise NodeError(
            f'The table for DISCOVERY = "database" doesn\'t exist ({problem}). Run manage.py migrate, or set '
            "a different DISCOVERY."
        )
    if problem:
        logger.warning("cannot read discovery table yet: %s; the node serves alone until it can", problem)


def _channel_layer(settings: Settings) -> Any:
    if settings.channel_layer is None:
        return None
    for problem in check_channel_layer(settings.channel_layer):
        raise NodeError(f"{problem.msg} {problem.hint}")
    try:
        # A new one: that of an earlier instance of the node in this process may still belong to its event loop.
        layer: Any = channel_layers.make_backend(settings.channel_layer)
    except Exception as error:
        raise NodeError(f"The channel layer {settings.channel_layer!r} cannot be created: {error}") from error
    if f"{type(layer).__module__}.{type(layer).__qualname__}" == PUBSUB_LAYER:
        return PubSubLayer(layer, MISSED_BEATS * settings.timings.heartbeat)
    return layer


class SignalSender:
    """Sends the signals in order, from a thread: a receiver that blocks doesn't delay heartbeats."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Notification] = asyncio.Queue(_QUEUED_EVENTS)
        self._log = RateLimitedLog(time.monotonic, again=60.0)
        self._task: asyncio.Task[None] | None = None

    def __call__(self, event: Notification) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        if self._queue.full():
            self._log.write(f"signal dropped: receivers are too slow; {event}", "slow")
        else:
            self._queue.put_nowait(event)

    async def _run(self) -> None:
        while True:
            event = await self._queue.get()
            await asyncio.to_thread(_send_signal, event)


def _send_signal(event: Notification) -> None:
    try:
        results = _call_receivers(event)
    finally:
        # Events are rare, and the database may restart before the next one. Django replaces dead connections only
        # between requests, of which a node has none, so none is kept, whatever CONN_MAX_AGE says.
        connections.close_all()
    for receiver, result in results:
        if isinstance(result, Exception):
            logger.error("receiver %r of a cluster signal failed; the others were called", receiver, exc_info=result)


def _call_receivers(event: Notification) -> list[tuple[Any, Any]]:
    """Each receiver, and the value that it returned or the exception that it raised."""
    match event:
        case ViewChanged(old, new):
            return signals.view_changed.send_robust(Membership, old=old, new=new)
        case Isolated():
            return signals.cluster_isolated.send_robust(Membership)
        case Change(identity, before) if (what := what_happened(event)) in _SIGNALS:
            return _SIGNALS[what].send_robust(Membership, identity=identity, old=before)
    return []


def _metrics(node: Node, host: str, port: int | None) -> AbstractAsyncContextManager[object]:
    """A context in which the metrics are served, if there is a port."""
    if port is None:
        return nullcontext()
    try:
        from ...metrics import render  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise NodeError("Metrics need prometheus_client: pip install django-clusterstate[prometheus]") from error
    address = parse_tcp(str(TcpAddress(host, port)))
    return serve_metrics(address, lambda accept: render(node.handler.status(), accept))


def _run(node: Node, watch: AddressWatch, metrics: AbstractAsyncContextManager[object]) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # one for each connection; the default is often 1,024
    factory = _loop_factory()
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_run_until_signaled(node, watch, metrics))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - it doesn't exist on every platform
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _run_until_signaled(node: Node, watch: AddressWatch, metrics: AbstractAsyncContextManager[object]) -> None:
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(1)  # the second signal
        stop.set()

    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        loop.add_signal_handler(signum, on_signal)
    watching = asyncio.create_task(watch.run())
    try:
        async with metrics:
            await node.run(stop)
    finally:
        watching.cancel()


def _set_up_logging() -> None:
    """Logs to stderr unless the project's LOGGING configures the package's loggers."""
    root = logging.getLogger("django_clusterstate")
    if not root.hasHandlers():
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        root.addHandler(handler)
    if root.level == logging.NOTSET:
        root.setLevel(logging.INFO)
