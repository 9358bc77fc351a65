"""What releases and the image are made of: files that name each other, and agree."""

import fnmatch
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

import step_cli

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
CHECK = "tests/release/installed.py"
RELEASE = ".github/workflows/release.yml"


def python_versions() -> list[str]:
    """The versions of Python that the project says it is for."""
    prefix = "Programming Language :: Python :: "
    names = PROJECT["project"]["classifiers"]
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def workflow() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    found = yaml.safe_load((ROOT / RELEASE).read_text("utf-8"))
    assert isinstance(found, dict)
    return found


def commands(job: dict[str, Any]) -> str:
    return "\n".join(step.get("run", "") for step in job["steps"])


def test_the_package_says_that_it_has_types() -> None:
    assert Path(step_cli.__file__).with_name("py.typed").is_file()
    assert "Typing :: Typed" in PROJECT["project"]["classifiers"]


def test_only_what_was_checked_is_published() -> None:
    jobs = workflow()["jobs"]
    assert jobs["publish"]["needs"] == "check"
    assert set(jobs["check"]["needs"]) == {"sdist", "wheels"}
    assert "github.ref_type == 'tag'" in jobs["publish"]["if"]
    assert re.search(r'/bin/twine" check --strict dist/', commands(jobs["check"]))


def test_only_the_last_job_may_prove_who_it_is() -> None:
    found = workflow()
    assert found["permissions"] == {"contents": "read"}
    may = {name: job.get("permissions") for name, job in found["jobs"].items()}
    assert may.pop("publish") == {"id-token": "write"}
    assert set(may.values()) == {None}
    assert "secrets." not in (ROOT / RELEASE).read_text("utf-8")


def test_wheels_are_tested_with_every_python_and_processor() -> None:
    jobs = workflow()["jobs"]
    assert jobs["check"]["strategy"]["matrix"]["python"] == python_versions()
    machines = jobs["wheels"]["strategy"]["matrix"]["os"]
    assert jobs["check"]["strategy"]["matrix"]["os"] == machines
    oldest = python_versions()[0].replace(".", "")
    built = PROJECT["tool"]["cibuildwheel"]["build"]
    assert built == [f"cp{oldest}-manylinux_{x}" for x in ("x86_64", "aarch64")]


@pytest.mark.parametrize(
    "page",
    [
        "Makefile",
        "docs/releasing.md",
        "pyproject.toml",
        ".github/workflows/release.yml",
    ],
)
def test_each_runs_the_same_check_of_what_is_installed(page: str) -> None:
    assert (ROOT / CHECK).is_file()
    assert CHECK in (ROOT / page).read_text("utf-8")


def let_through(path: str) -> bool:
    """Whether `.dockerignore` lets a path at the top through."""
    kept = True
    for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines():
        if fnmatch.fnmatch(path, line.lstrip("!").rstrip("/")):
            kept = line.startswith("!")
    return kept


def test_the_image_gets_what_a_build_needs_and_no_more() -> None:
    copied = [
        word
        for line in re.findall(r"^COPY (?!--)(.*)$", DOCKERFILE, re.M)
        for word in shlex.split(line)[:-1]
    ]
    assert {"pyproject.toml", "hatch_build.py", "step_cli", "README.md"} <= set(copied)
    assert all((ROOT / name).exists() and let_through(name) for name in copied)
    for name in ("tests", ".git", "docs", "benchmarks", ".venv"):
        assert not let_through(name)
    included = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert set(included) <= set(copied)


def test_the_image_runs_step_cli_as_nobody_in_particular() -> None:
    last = DOCKERFILE.rpartition("FROM ")[2]
    user = re.search(r"^USER (\d+):(\d+)$", last, re.M)
    assert user is not None and int(user[1]) > 0 and int(user[2]) > 0
    assert 'ENTRYPOINT ["step-cli"]' in last
    version = re.search(r"^ARG PYTHON=(.*)$", DOCKERFILE, re.M)
    assert version is not None and version[1] in python_versions()
