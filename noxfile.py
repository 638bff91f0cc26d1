"""Runs the unit, client and cache tests with each supported Python and Django: `nox`, or `make compat`."""

from pathlib import Path

import nox

PYPROJECT = nox.project.load_toml(Path(__file__).with_name("pyproject.toml"))
DJANGO = "Framework :: Django :: "
PYTHONS = nox.project.python_versions(PYPROJECT)
DJANGOS = [line.removeprefix(DJANGO) for line in PYPROJECT["project"]["classifiers"] if line.startswith(DJANGO)]
PAIRS = [(python, django) for python in PYTHONS for django in DJANGOS if python != "3.11" or django == "5.2"]

nox.options.error_on_missing_interpreters = False


@nox.session
@nox.parametrize(["python", "django"], [nox.param(*pair, id="-".join(pair)) for pair in PAIRS])
def tests(session: nox.Session, django: str) -> None:
    session.run("python", "-m", "pip", "install", "--quiet", "--upgrade", "pip>=25.1")
    session.install("--editable", ".", "--group", "test", f"django~={django}.0")
    session.run("python", "-m", "tests.django_suite.fetch")
    paths = ("core", "wire", "node", "client", "django_suite", "cache/test_cache.py")
    session.run("pytest", *(f"tests/{path}" for path in paths), *session.posargs)
