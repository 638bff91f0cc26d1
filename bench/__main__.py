"""`python -m bench`: measures, prints a table and what the claims came to, and writes both as JSON."""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from . import report
from .cases import all_cases
from .claims import CLAIMS
from .measure import measure
from .placement import placements
from .servers import Servers
from .settings import configure, installed

PACKAGES = ("django", "redis", "hiredis", "pymemcache", "django-ratelimit", "limits", "uvloop", "msgspec")


def main() -> int:
    options = _arguments()
    start = time.monotonic()
    rounds, batch = (2, 5) if options.quick else (options.rounds, options.batch)
    with Servers() as servers:
        os.environ.update(servers.environment())
        configure(servers)
        cases = [case for case in all_cases(servers, quick=options.quick) if options.only in case.name]
        results = measure(cases, placements(), servers.pids(), rounds, batch, _progress)
    _progress("")
    machine = _machine() | {"rounds": rounds, "batch": batch, "seconds": round(time.monotonic() - start, 1)}
    print(report.table(results))
    print(report.verdicts(results))
    print("\n".join(["", *report.NOTES, "", ", ".join(f"{key} {value}" for key, value in machine.items() if value)]))
    options.json.write_text(json.dumps({"machine": machine, **report.as_json(results)}, indent=1) + "\n")
    held = [claim.held([claim.value(place) for place in results.values()]) for claim in CLAIMS]
    return int(options.check and False in held)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it works; no good figures")
    parser.add_argument("--only", default="", metavar="TEXT", help="the rows with this in their group or name")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a claim is not held")
    parser.add_argument("--json", type=Path, default=Path("bench.json"), metavar="PATH", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=60, help="at each place; default: %(default)s")
    parser.add_argument("--batch", type=int, default=30, help="operations of each case a round; default: %(default)s")
    return parser.parse_args()


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _machine() -> dict[str, Any]:
    versions = {name: importlib.metadata.version(name) for name in PACKAGES if installed(name.replace("-", "_"))}
    return {
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "CPUs": os.cpu_count(),
        **versions,
        "redis-server": _version("redis-server"),
        "memcached": _version("memcached"),
    }


def _version(program: str) -> str:
    """Of an installed program; empty without it."""
    try:
        answer = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=10)
    except OSError:
        return ""
    words = answer.stdout.split()
    return next((word.removeprefix("v=") for word in words if any(c.isdigit() for c in word)), "")


if __name__ == "__main__":
    sys.exit(main())
