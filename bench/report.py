"""The results of a run, for people and for programs."""

from collections.abc import Mapping
from typing import Any

from .cases import REMOTE, THREE_NODES
from .claims import ASIDES, CLAIMS, Ratio
from .measure import Result, Results

NOTES = (
    "One machine, one client, one request at a time; `times` compares with our row for another node, round by round.",
    "Batches of all rows take turns in random order. On one CPU a figure is the work of both sides and nothing else;",
    "on two it is that and two wake-ups, of which our clients mostly save one: they look before they sleep.",
    "A network comes on top.",
    "The rows `Redis` are redis-py as `pip install redis` leaves it, and django-ratelimit goes through that.",
    "Asynchronous rows run in one event loop of uvloop, as uvicorn does where it is installed; so do nodes.",
    "Django's own asynchronous cache methods are its synchronous ones in a thread.",
)
_WHO = 40


def table(results: Mapping[str, Results]) -> str:
    """Rows by group, with columns for each place."""
    head = "".join(f"{place:>15}{'p99':>9}{'times':>7}" for place in results)
    lines = [f"{'median, in microseconds an operation':{_WHO}}{head}"]
    groups: dict[str, list[str]] = {}
    for name, result in next(iter(results.values())).items():
        groups.setdefault(result.case.group, []).append(name)
    for group, names in groups.items():
        lines += ["", group, *(_row(name, _base(names, results), results) for name in names)]
    return "\n".join(lines)


def _base(names: list[str], results: Mapping[str, Results]) -> str:
    """The row that the others of a group are compared with."""
    cases = next(iter(results.values()))
    return next((name for name in names if cases[name].case.who in (REMOTE, THREE_NODES)), names[0])


def _row(name: str, base: str, results: Mapping[str, Results]) -> str:
    rows = [(place[name], place[base]) for place in results.values()]
    case = rows[0][0].case
    line = f"  {case.who:{_WHO - 2}}"
    if case.missing:
        return f"{line}{'not measured':>15}  ({case.missing})"
    line += "".join(f"{row.median:15.2f}{row.p99:9.2f}{row.times(its):7.2f}" for row, its in rows)
    wrong = sum(row.wrong for row, _ in rows)
    return f"{line}  {wrong} wrong answers" if wrong else line


def verdicts(results: Mapping[str, Results]) -> str:
    lines = []
    for title, ratios in (("Claims", CLAIMS), ("For comparison", ASIDES)):
        lines += ["", f"{title:66}" + "".join(f"{place:>14}" for place in results)]
        for ratio in ratios:
            values = [ratio.value(place) for place in results.values()]
            times = "".join(f"{'not measured' if value is None else f'{value:.2f} times':>14}" for value in values)
            held = {True: "held", False: "NOT HELD", None: ""}[ratio.held(values)]
            lines.append(f"  {ratio.text:64}{times}  {ratio.bound:13}{held}".rstrip())
    return "\n".join(lines)


def as_json(results: Mapping[str, Results]) -> dict[str, Any]:
    cases = {name: result.case for name, result in next(iter(results.values())).items()}
    return {
        "cases": {
            name: {
                "group": case.group,
                "who": case.who,
                "not_measured": case.missing,
                "microseconds": {place: _figures(rows[name]) for place, rows in results.items() if rows[name].rounds},
            }
            for name, case in cases.items()
        },
        "claims": [_ratio(ratio, results) for ratio in CLAIMS],
        "comparisons": [_ratio(ratio, results) for ratio in ASIDES],
    }


def _figures(result: Result) -> dict[str, float]:
    return {"median": round(result.median, 3), "p99": round(result.p99, 3), "wrong_answers": result.wrong}


def _ratio(ratio: Ratio, results: Mapping[str, Results]) -> dict[str, Any]:
    values = {place: ratio.value(rows) for place, rows in results.items()}
    return {
        "text": ratio.text,
        "slow": ratio.slow,
        "fast": ratio.fast,
        "times": {place: None if value is None else round(value, 3) for place, value in values.items()},
        "at_least": ratio.at_least,
        "at_most": ratio.at_most,
        "held": ratio.held(list(values.values())),
    }
