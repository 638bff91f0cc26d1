"""The distributions have all files, and work in an empty virtual environment: `make package`."""

import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from testproject.processes import ROOT, Process, free_port, wait_until

pytestmark = pytest.mark.package

# Run in the empty environment, as a project that has only the wheel.
SETTINGS = """
SECRET_KEY = "a secret of at least thirty-two characters"
INSTALLED_APPS = ["django_clusterstate"]
USE_TZ = True
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}}
CACHES = {"default": {"BACKEND": "django_clusterstate.cache.ClusterCache"}}
"""
USE = """
import time
import django
django.setup()
from django.core.cache import cache
from django_clusterstate import ratelimit
from django_clusterstate.exceptions import Unavailable
end = time.monotonic() + 60
while cache.get("key") != "value" and time.monotonic() < end:  # until the node serves
    cache.set("key", "value")
    time.sleep(0.05)
assert cache.get("key") == "value"
limit = ratelimit.Limit.parse("1/d")
assert [ratelimit.hit(limit, "package", "key").allowed for _ in range(2)] == [True, False]
"""


def python(program: Path | str, *arguments: str, cwd: Path, **env: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(program), *arguments]
    done = subprocess.run(command, cwd=cwd, env={**inherited, **env}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with a source distribution, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    python(sys.executable, "-m", "build", "--outdir", str(folder), cwd=ROOT)
    return folder


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a virtual environment that has only the wheel and what it depends on."""
    folder = tmp_path_factory.mktemp("environment")
    python(sys.executable, "-m", "venv", str(folder), cwd=folder)
    program = folder / "bin" / "python"
    python(program, "-m", "pip", "install", "--quiet", *map(str, dist.glob("*.whl")), cwd=folder)
    return program


def source_files() -> Iterator[str]:
    for path in (ROOT / "django_clusterstate").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            yield str(path.relative_to(ROOT))


def test_wheel_has_each_file_of_the_package_and_no_others(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == set(source_files())


def test_source_distribution_has_the_package_and_what_tests_it(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert set(source_files()) <= names
    assert {"pyproject.toml", "noxfile.py", "Makefile", "manage.py", "tests/conftest.py", "docs/index.md"} <= names


def test_wheel_works_in_an_empty_environment(installed: Path, folder: Path) -> None:
    (folder / "settings.py").write_text(SETTINGS)
    env = {
        "DJANGO_SETTINGS_MODULE": "settings",
        "PYTHONPATH": str(folder),
        "CLUSTERSTATE_SOCKET": str(folder / "node.sock"),
        "CLUSTERSTATE_BIND": f"127.0.0.1:{free_port()}",
    }
    where = python(installed, "-c", "import django_clusterstate as it; print(it.__file__)", cwd=folder)
    assert Path(where.strip()).is_relative_to(installed.parent.parent)
    python(installed, "-m", "django", "check", cwd=folder, **env)
    python(installed, "-m", "django", "migrate", cwd=folder, **env)
    node = Process([str(installed), "-m", "django", "clusternode"], folder / "node.log", {**os.environ, **env}, folder)
    try:
        wait_until(lambda: (folder / "node.sock").exists() or not node.running, 60, "a node's socket")
        assert node.running, node.output()
        python(installed, "-c", USE, cwd=folder, **env)
    finally:
        node.stop()
