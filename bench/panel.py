"""`python -m bench.panel`: what a page of the panel costs a site, with ten nodes and something to show.

Django answers in this process, from the middleware to the rendered page, with a database in a file. The first request
of a kind, which loads templates, isn't measured.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import django
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.test import Client

from testproject.panel import PAGE, make_traffic
from testproject.processes import LocalCluster

ROUNDS = 50
TRAFFIC = 12.0  # seconds: two steps of the curves


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
    django.setup()
    call_command("migrate", verbosity=0)
    make_traffic(TRAFFIC)
    client = Client(SERVER_NAME="localhost")
    client.force_login(get_user_model().objects.create_superuser("admin"))
    print(f"{nodes} nodes, {ROUNDS} requests each; milliseconds")
    print(f"{'':12}{'median':>8}{'p95':>8}{'cpu':>8}{'bytes':>10}")
    for name, query in {"a refresh": "?live", "the page": "", "the events": "events/?name=export.failed"}.items():
        size, walls, cpu = timed(client, f"/{PAGE}{query}")
        p95 = statistics.quantiles(walls, n=20)[-1]
        print(f"{name:12}{statistics.median(walls):8.1f}{p95:8.1f}{cpu:8.1f}{size:10,}", flush=True)


def timed(client: Client, url: str) -> tuple[int, list[float], float]:
    """The size of the page; how long each request took, and the processor for one on the average, in milliseconds."""
    size, walls = len(client.get(url).content), []
    start = time.process_time()
    for _ in range(ROUNDS):
        before = time.perf_counter()
        client.get(url)
        walls.append(1000 * (time.perf_counter() - before))
    return size, walls, 1000 * (time.process_time() - start) / ROUNDS


if __name__ == "__main__":
    main()
