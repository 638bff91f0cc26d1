"""The files around the package agree: versions of Python and Django, and what `make`, CI and the documents call."""

import re
import tomllib
from typing import Any

import yaml

import noxfile
from testproject.processes import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CLASSIFIERS = PYPROJECT["project"]["classifiers"]


def versions(classifier: str) -> list[str]:
    """The versions in the classifiers that begin so."""
    return [line.removeprefix(classifier) for line in CLASSIFIERS if re.match(rf"{classifier}\d+\.\d+$", line)]


PYTHONS = versions("Programming Language :: Python :: ")
DJANGOS = versions("Framework :: Django :: ")


def workflow(name: str) -> Any:
    return yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())


def test_lowest_versions_are_those_that_the_package_requires() -> None:
    assert PYPROJECT["project"]["requires-python"] == f">={PYTHONS[0]}"
    major, minor = DJANGOS[-1].split(".")
    assert f"django>={DJANGOS[0]},<{major}.{int(minor) + 1}" in PYPROJECT["project"]["dependencies"]


def test_workflow_has_each_pair_of_versions_that_nox_has() -> None:
    matrix = workflow("tests")["jobs"]["matrix"]["strategy"]["matrix"]
    assert matrix["python"] == PYTHONS
    assert matrix["django"] == DJANGOS
    excluded = {(pair["python"], pair["django"]) for pair in matrix["exclude"]}
    pairs = [(python, django) for python in PYTHONS for django in DJANGOS if (python, django) not in excluded]
    assert pairs == noxfile.PAIRS


def test_documents_are_built_as_read_the_docs_does() -> None:
    built = yaml.safe_load((ROOT / ".readthedocs.yaml").read_text())
    assert (ROOT / built["sphinx"]["configuration"]).is_file()
    assert built["build"]["tools"]["python"] in PYTHONS


def test_ci_and_workflows_call_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    files = [ROOT / ".ci" / "run", *(ROOT / ".github" / "workflows").glob("*.yml")]
    called = {name for path in files for name in re.findall(r"\bmake ([a-z-]+)", path.read_text())}
    assert {"lint", "test", "timing", "package", "faults"} <= called <= targets


def test_files_that_people_look_for_exist() -> None:
    for name in ("README.md", "CHANGELOG.md", "LICENSE", "SECURITY.md", "CODE_OF_CONDUCT.md", "docs/contributing.md"):
        assert (ROOT / name).is_file(), name
    assert set(PYPROJECT["project"]["urls"]) == {"Documentation", "Source", "Changelog", "Issues"}
