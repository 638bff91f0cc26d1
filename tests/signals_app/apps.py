import os
import uuid
from typing import Any

from django.apps import AppConfig
from django.utils import timezone

from django_clusterstate import signals
from django_clusterstate.core.membership.heartbeat import Identity, View


class SignalsAppConfig(AppConfig):
    name = "tests.signals_app"

    def ready(self) -> None:
        for name in ("member_up", "member_suspect", "member_down", "member_left"):
            receiver = _writer(name)
            getattr(signals, name).connect(receiver, weak=False)
            getattr(signals, name).connect(_broken, weak=False)
        signals.view_changed.connect(_write_view, weak=False)
        if os.environ.get("SIGNALS_STORED"):
            signals.member_down.connect(_store, weak=False)
            signals.member_down.connect(_astore, weak=False)


def _writer(name: str) -> Any:
    def write(identity: Identity, **kwargs: Any) -> None:
        _write(f"{name} {identity.name}")

    return write


def _write_view(old: View, new: View, **kwargs: Any) -> None:
    names = [",".join(member.name for member in view.members) for view in (old, new)]
    _write(f"view {names[0] or '-'} -> {names[1] or '-'}")


def _write(line: str) -> None:
    with open(os.environ["SIGNALS_FILE"], "a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def _store(identity: Identity, **kwargs: Any) -> None:
    from django_clusterstate.models import NodeAddress  # noqa: PLC0415 - the models aren't loaded when this module is

    NodeAddress.objects.create(cluster="sync", name=str(uuid.uuid4()), address=identity.address, seen=timezone.now())
    _write(f"sync stored {identity.name} {NodeAddress.objects.filter(cluster='sync').count()}")


async def _astore(identity: Identity, **kwargs: Any) -> None:
    from django_clusterstate.models import NodeAddress  # noqa: PLC0415 - as above

    await NodeAddress.objects.acreate(
        cluster="async", name=str(uuid.uuid4()), address=identity.address, seen=timezone.now()
    )
    _write(f"async stored {identity.name} {await NodeAddress.objects.filter(cluster='async').acount()}")


def _broken(**kwargs: Any) -> None:
    raise RuntimeError("a receiver of the user's that fails")
