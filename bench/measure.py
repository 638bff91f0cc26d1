"""Measuring in rounds: in each, every case runs a few operations, in random order.

So whatever disturbs the machine disturbs all of them, and a ratio of two medians of the same round means something
where the medians themselves don't. A claim is judged by the median of those ratios.
"""

import asyncio
import itertools
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any

from .placement import Placement

try:
    import uvloop
except ImportError:  # it doesn't exist everywhere
    uvloop = None  # type: ignore[assignment]

event_loop = uvloop.new_event_loop if uvloop else None

WARM_UP = 2  # calls before each batch that aren't counted: the batch before was another's
TRIES = 3  # of a batch in which the system moved us to the servers' processor
BATCH_NS = 8_000_000  # a batch ends after this time too, so that slow operations don't take most of a run


@dataclass(frozen=True)
class Case:
    """An operation, called with one of the arguments after the other.

    `per_call`: into how many operations a call's time is to be divided. `correct` judges what a call returns, so that
    nobody is praised for a quick failure. `missing`: why it can't be measured; empty if it can.
    """

    group: str
    who: str
    operation: Callable[[Any], Any] = print
    arguments: Sequence[Any] = ()
    correct: Callable[[Any], bool] = lambda _: True
    asynchronous: bool = False
    per_call: int = 1
    missing: str = ""

    @property
    def name(self) -> str:
        return f"{self.group}: {self.who}"


@dataclass
class Result:
    """Times in microseconds: `rounds` holds those of each operation, by round."""

    case: Case
    rounds: list[list[float]] = field(default_factory=list)
    wrong: int = 0

    @property
    def median(self) -> float:
        return statistics.median(itertools.chain.from_iterable(self.rounds))

    @property
    def p99(self) -> float:
        times = sorted(itertools.chain.from_iterable(self.rounds))
        return times[len(times) * 99 // 100]

    def times(self, other: "Result") -> float:
        """How many times as long as the other it takes: the median over the rounds of the ratio of medians."""
        pairs = zip(self.rounds, other.rounds, strict=True)
        return statistics.median(statistics.median(mine) / statistics.median(its) for mine, its in pairs)


Results = dict[str, Result]  # by the names of their cases


def measure(
    cases: Sequence[Case],
    places: Sequence[Placement],
    servers: Sequence[int],
    rounds: int,
    batch: int,
    progress: Callable[[str], None],
) -> dict[str, Results]:
    """Results by place; of a missing case, one without rounds. Each round is held at each place.

    `servers` are process ids. One event loop serves all asynchronous cases: uvloop's, which this package brings, so
    that an ASGI server uses it.
    """
    results = {place.name: {case.name: Result(case) for case in cases} for place in places}
    endless = {case.name: itertools.cycle(case.arguments) for case in cases}
    present = [case for case in cases if not case.missing]
    with asyncio.Runner(loop_factory=event_loop) as runner:
        for number, place in itertools.product(range(rounds), places):
            progress(f"round {number + 1} of {rounds}, {place.name}")
            place.apply(servers)
            for case in random.sample(present, len(present)):
                arguments = list(itertools.islice(endless[case.name], WARM_UP + batch))
                result = results[place.name][case.name]
                for _ in range(TRIES):
                    place.begin()
                    if case.asynchronous:
                        times, wrong = runner.run(_batch_async(case, arguments))
                    else:
                        times, wrong = _batch(case, arguments)
                    result.wrong += wrong
                    if place.stayed():
                        break
                result.rounds.append([time / 1000 / case.per_call for time in times])
    return results


def _batch(case: Case, arguments: Sequence[Any]) -> tuple[list[int], int]:
    operation = case.operation
    times = []
    wrong = sum(not case.correct(operation(argument)) for argument in arguments[:WARM_UP])
    until = perf_counter_ns() + BATCH_NS
    for argument in arguments[WARM_UP:]:
        start = perf_counter_ns()
        operation(argument)
        end = perf_counter_ns()
        times.append(end - start)
        if end > until:
            break
    return times, wrong


async def _batch_async(case: Case, arguments: Sequence[Any]) -> tuple[list[int], int]:
    operation = case.operation
    times = []
    wrong = 0
    for argument in arguments[:WARM_UP]:
        wrong += not case.correct(await operation(argument))
    until = perf_counter_ns() + BATCH_NS
    for argument in arguments[WARM_UP:]:
        start = perf_counter_ns()
        await operation(argument)
        end = perf_counter_ns()
        times.append(end - start)
        if end > until:
            break
    return times, wrong
