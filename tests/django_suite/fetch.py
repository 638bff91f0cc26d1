"""Fetches test suites of others, of the versions that are installed: `python -m tests.django_suite.fetch`.

Django's own cache suite, and the throttle suite of Django REST framework. The wheels don't have them, so they are taken
from the source distributions, into `.cache/`. (That of django-ninja has no tests.)
"""

import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

CACHE = Path(__file__).resolve().parents[2] / ".cache"
TESTS = CACHE / f"django-{version('django')}" / "tests"
DRF_TESTS = CACHE / f"djangorestframework-{version('djangorestframework')}" / "tests"


def fetch(package: str, wanted: str, into: Path) -> None:
    """The files of a source distribution whose path below its `tests` begins with `wanted`."""
    if into.is_dir():
        return
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:",
             "--dest", folder, f"{package}=={version(package)}"],
            check=True,
        )  # fmt: skip
        (archive,) = Path(folder).glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            tests = f"{tar.getnames()[0].split('/')[0]}/tests/"
            members = [member for member in tar.getmembers() if member.name.startswith(f"{tests}{wanted}")]
            for member in members:
                member.name = member.name.removeprefix(tests)
            into.mkdir(parents=True)
            tar.extractall(into, members=members, filter="data")


if __name__ == "__main__":
    fetch("django", "cache/", TESTS)
    fetch("djangorestframework", "test_throttling.py", DRF_TESTS)
