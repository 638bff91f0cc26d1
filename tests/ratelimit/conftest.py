"""The functions of `ratelimit`, for tests that hold the blocking and the asyncio ones to one contract."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest

from django_clusterstate import ratelimit
from django_clusterstate.ratelimit import Decision


@dataclass(frozen=True)
class LimitFunctions:
    """The functions as they are, or their asynchronous twins in an event loop."""

    hit: Callable[..., Decision]
    peek: Callable[..., Decision]
    refund: Callable[..., bool]
    reset: Callable[..., bool | None]


@pytest.fixture(params=["sync", "async"])
def functions(request: pytest.FixtureRequest) -> Iterator[LimitFunctions]:
    if request.param == "sync":
        yield LimitFunctions(ratelimit.hit, ratelimit.peek, ratelimit.refund, ratelimit.reset)
        return
    with asyncio.Runner() as runner:

        def run(function: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *args, **kwargs: runner.run(function(*args, **kwargs))

        yield LimitFunctions(run(ratelimit.ahit), run(ratelimit.apeek), run(ratelimit.arefund), run(ratelimit.areset))


@pytest.fixture
def group() -> str:
    """One that no other test counts in."""
    return uuid4().hex
