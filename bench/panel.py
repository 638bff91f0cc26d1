"""`python -m bench.panel`: what a page of the panel costs a site, with ten nodes and something to show.

Django answers in this process, from the middleware to the rendered page, with a database in a file. The first request
of a kind, which loads templates, isn't measured.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from testproject.panel import PAGE
from testproject.processes import LocalCluster

ROUNDS = 50
STEPS = 12.0  # seconds: two steps of the curves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=10)
    names = tuple(f"web-{number}" for number in range(1, parser.parse_args().nodes + 1))
    with tempfile.TemporaryDirectory(prefix="cs-") as folder:
        env = {"DEMO_RUN_DIR": folder, "DJANGO_SETTINGS_MODULE": "testproject.settings"}
        with LocalCluster(Path(folder), names, env=env) as nodes:
            nodes.start()
            nodes.wait_for()
            os.environ.update(nodes.env(names[0]))
            measure(len(names))


def measure(nodes: int) -> None:
    import django  # noqa: PLC0415 - there are settings only now

    django.setup()
    from django.contrib.auth.models import User  # noqa: PLC0415
    from django.core.management import call_command  # noqa: PLC0415
    from django.test import Client  # noqa: PLC0415

    call_command("migrate", verbosity=0)
    fill()
    client = Client(SERVER_NAME="localhost")
    client.force_login(User.objects.create_superuser("admin"))
    print(f"{nodes} nodes, {ROUNDS} requests each; milliseconds")
    print(f"{'':12}{'median':>8}{'p95':>8}{'cpu':>8}{'bytes':>10}")
    for name, query in {"a refresh": "?live", "the page": "", "the events": "events/?name=export.failed"}.items():
        size, walls, cpu = timed(lambda url=f"/{PAGE}{query}": len(client.get(url).content))  # type: ignore[misc]
        p95 = statistics.quantiles(walls, n=20)[-1]
        print(f"{name:12}{statistics.median(walls):8.1f}{p95:8.1f}{cpu:8.1f}{size:10,}", flush=True)


def fill() -> None:
    """Gives the pages something to show, over some steps of the curves."""
    from django.core.cache import cache  # noqa: PLC0415

    from django_clusterstate.events import flush, track  # noqa: PLC0415
    from django_clusterstate.ratelimit import Limit, hit  # noqa: PLC0415

    cache.set_many({f"page-{number}": "x" * 500 for number in range(3000)})
    limit, end = Limit.parse("10/m"), time.monotonic() + STEPS
    number = 0
    while time.monotonic() < end:
        number += 1
        hit(limit, "login", f"ip:10.0.0.{number % 50}")
        track("export.failed", key=f"org-{number % 20}", reason="timeout")
        time.sleep(0.002)
    flush()


def timed(request: Callable[[], int]) -> tuple[int, list[float], float]:
    """What the request returns, how long each took, and the processor's time of one on the average; milliseconds."""
    size, walls = request(), []
    start = time.process_time()
    for _ in range(ROUNDS):
        before = time.perf_counter()
        request()
        walls.append(1000 * (time.perf_counter() - before))
    return size, walls, 1000 * (time.process_time() - start) / ROUNDS


if __name__ == "__main__":
    main()
