"""One process of `bench.events`: tracks so many events of a name, with so many keys, evenly over some seconds.

Prints the seconds that it took, those of CPU, and how many events were dropped.
"""

import sys
import time

import django

django.setup()

from django_clusterstate import events  # noqa: E402 - after the settings are known

STEPS = 500


def main(name: str, number: int, keys: int, seconds: float) -> None:
    start, cpu = time.perf_counter(), time.process_time()
    for step in range(STEPS):
        for i in range(number * step // STEPS, number * (step + 1) // STEPS):
            events.track(name, key=i % keys, reason="timeout")
        time.sleep(max(0.0, start + seconds * (step + 1) / STEPS - time.perf_counter()))
    took = time.perf_counter() - start
    events.flush(10)
    print(took, time.process_time() - cpu, events.dropped())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
