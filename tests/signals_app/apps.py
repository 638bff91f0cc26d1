import os
from typing import Any

from django.apps import AppConfig

from django_clusterstate import signals
from django_clusterstate.core.messages import Identity, View


class SignalsAppConfig(AppConfig):
    name = "tests.signals_app"

    def ready(self) -> None:
        for name in ("member_up", "member_suspect", "member_down", "member_left"):
            receiver = _writer(name)
            getattr(signals, name).connect(receiver, weak=False)
            getattr(signals, name).connect(_broken, weak=False)
        signals.view_changed.connect(_write_view, weak=False)


def _writer(name: str) -> Any:
    def write(identity: Identity, **kwargs: Any) -> None:
        with open(os.environ["SIGNALS_FILE"], "a", encoding="utf-8") as file:
            file.write(f"{name} {identity.name}\n")

    return write


def _write_view(old: View, new: View, **kwargs: Any) -> None:
    with open(os.environ["SIGNALS_FILE"], "a", encoding="utf-8") as file:
        names = [",".join(member.name for member in view.members) for view in (old, new)]
        file.write(f"view {names[0] or '-'} -> {names[1] or '-'}\n")


def _broken(**kwargs: Any) -> None:
    raise RuntimeError("a receiver of the user's that fails")
