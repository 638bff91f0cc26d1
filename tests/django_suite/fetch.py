"""Fetches Django's own test suite, of the version that is installed: `python -m tests.django_suite.fetch`.

The wheel doesn't have it, so it is taken from the source distribution, into `.cache/`.
"""

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import django

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / ".cache" / f"django-{django.__version__}" / "tests"


def fetch() -> None:
    if TESTS.is_dir():
        return
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:",
             "--dest", folder, f"django=={django.__version__}"],
            check=True,
        )  # fmt: skip
        (archive,) = Path(folder).glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            top = tar.getnames()[0].split("/")[0]
            wanted = [member for member in tar.getmembers() if member.name.startswith(f"{top}/tests/cache/")]
            for member in wanted:
                member.name = member.name.removeprefix(f"{top}/tests/")
            TESTS.mkdir(parents=True)
            tar.extractall(TESTS, members=wanted, filter="data")


if __name__ == "__main__":
    fetch()
