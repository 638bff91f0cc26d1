"""What a request has counted at the limits around its view, noted on it: when one blocks, others give theirs back."""

import time
from typing import NamedTuple

from django.http import HttpRequest

from .counting import arefund, refund
from .limit import Decision, Limit


class Question(NamedTuple):
    """What is asked for one request. `group` is that which is counted: with the methods, if not all count."""

    limit: Limit
    group: str
    key: str
    cost: int


class Counted(NamedTuple):
    """A hit that the request has passed, and when that was known, on this process's monotonic clock."""

    question: Question
    decision: Decision
    at: float


def note(request: HttpRequest, question: Question, decision: Decision) -> None:
    """Adds a hit that has passed."""
    counted_by(request).append(Counted(question, decision, time.monotonic()))


def counted_by(request: HttpRequest) -> list[Counted]:
    """What is noted, to be changed."""
    counted: list[Counted] | None = getattr(request, "_clusterstate_counted", None)
    if counted is None:
        counted = request._clusterstate_counted = []  # type: ignore[attr-defined]
    return counted


def take_all(request: HttpRequest) -> list[Counted]:
    taken = list(counted_by(request))
    counted_by(request).clear()
    return taken


def give_back(counted: Counted) -> None:
    refund(counted.decision, *counted.question, ago=time.monotonic() - counted.at)


async def agive_back(counted: Counted) -> None:
    await arefund(counted.decision, *counted.question, ago=time.monotonic() - counted.at)
