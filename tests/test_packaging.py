"""What is declared, what is locked, and what an install would do to the torch that is there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

import l0compress
import l0compress_runtime

ROOT = Path(__file__).parents[1]
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
RUNTIME = tomllib.loads((ROOT / "l0compress_runtime" / "pyproject.toml").read_text(encoding="utf-8"))
OURS = ("l0compress", "l0compress-runtime")
EXTRAS = DECLARED["project"]["optional-dependencies"]
# What pip says when it reaches no index, or nobody answers there.
OFFLINE = ("connection broken", "Max retries exceeded", "Failed to establish", "Could not fetch URL", "timed out")


@cache
def locked() -> dict[str, list[tuple[str, bool]]]:
    """Every requirement of the lock file with whether a hash holds it, by section."""
    sections: dict[str, list[tuple[str, bool]]] = {}
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if line.startswith("# --- "):
            entries = sections.setdefault(line.removeprefix("# --- "), [])
        elif line and not line.lstrip().startswith("#"):
            requirement, *hashes = line.split(" --hash=sha256:")
            entries.append((requirement.strip(), bool(hashes)))
    return sections


def pins(section: str) -> dict[str, str]:
    """The versions of a section for this machine."""
    found = [Requirement(text) for text, _ in locked()[section]]
    applied = [each for each in found if each.marker is None or each.marker.evaluate()]
    return {canonical(each.name): str(each.specifier).removeprefix("==") for each in applied}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> Iterator[tuple[str, Requirement]]:
    """Every direct requirement, and the section that has to hold it."""
    for requirement in [*of_project(DECLARED), *of_project(RUNTIME)]:
        if requirement.name not in (*OURS, "torch"):
            yield "develop", requirement
    for group, texts in DECLARED["dependency-groups"].items():
        for text in texts:
            yield group, Requirement(text)


def of_project(project: dict) -> list[Requirement]:
    """What a distribution requires, with all of its extras."""
    extras = project["project"]["optional-dependencies"].values()
    return [Requirement(text) for texts in (project["project"]["dependencies"], *extras) for text in texts]


class TestTheLockFile:
    @pytest.mark.parametrize("section, requirement", [pytest.param(*each, id=str(each[1])) for each in declared()])
    def test_it_has_what_is_declared(self, section: str, requirement: Requirement) -> None:
        """Where this fails, pyproject.toml has changed since: make lock."""
        assert requirement.specifier.contains(pins(section)[canonical(requirement.name)])

    def test_every_entry_has_one_version_and_a_hash(self) -> None:
        entries = [entry for section in locked().values() for entry in section]
        assert [text for text, hashed in entries if not hashed or not re.match(r"[\w.-]+==[\w.+!]+( |$)", text)] == []

    def test_nothing_of_cuda_comes_along(self) -> None:
        assert [name for name in pins("develop") if re.match("cuda-|nvidia-|triton|torch(vision|audio)?$", name)] == []

    def test_the_torch_of_the_project_is_the_one_that_is_locked(self) -> None:
        (group,) = DECLARED["dependency-groups"]["torch"]
        (lowest,) = (each for each in of_project(DECLARED) if each.name == "torch")
        assert Requirement(group).specifier.contains(str(lowest.specifier).removeprefix(">="))
        assert Requirement(group) == Requirement(f"torch=={pins('torch')['torch']}")
        assert set(pins("torch-cpu").values()) <= {f"{pins('torch')['torch']}+cpu"}


def would_install(*requirements: str) -> set[str]:
    """The packages that pip would install or replace here, by a dry run."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--report", "-", "--quiet"]
    command += ["--no-build-isolation", "--disable-pip-version-check", "--retries", "0", *requirements]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if outcome.returncode and any(symptom in outcome.stderr for symptom in OFFLINE):
        pytest.skip("No package index can be reached, so that pip cannot say what it would install.")
    assert outcome.returncode == 0, outcome.stderr
    return {canonical(entry["metadata"]["name"]) for entry in json.loads(outcome.stdout)["install"]}


@pytest.mark.slow
class TestExtras:
    def test_no_extra_touches_the_users_torch(self) -> None:
        """Nor brings torchvision, which is built for one version of torch and so drags that along."""
        installed = would_install("./l0compress_runtime", f".[{','.join(EXTRAS)}]")
        assert "l0compress" in installed
        assert installed.isdisjoint({"torch", "torchvision", "torchaudio", "triton"})
        assert not [name for name in installed if name.startswith(("nvidia-", "cuda-"))]

    def test_extras_that_people_have_written_down_stay(self) -> None:
        known = {"numba", "bench", "examples", "images", "tables", "transformers", "onnx-input", "zoo", "plot", "dev"}
        assert known <= EXTRAS.keys()


class TestTheRuntime:
    def test_both_are_of_one_version(self) -> None:
        versions = {project["project"]["version"] for project in (DECLARED, RUNTIME)}
        assert versions == {l0compress.__version__} == {l0compress_runtime.__version__}
        assert [f"=={each}" for each in versions] == [
            str(each.specifier) for each in of_project(DECLARED) if each.name == "l0compress-runtime"
        ]

    def test_what_both_require_has_one_lower_bound(self) -> None:
        """`make test-lowest` finds the lowest versions by what the whole declares."""
        whole = {str(each) for each in of_project(DECLARED)}
        assert {str(each) for each in of_project(RUNTIME)} <= whole

    def test_it_is_under_the_same_licence(self) -> None:
        texts = {(folder / "LICENSE").read_bytes() for folder in (ROOT, ROOT / "l0compress_runtime")}
        assert len(texts) == 1
        assert RUNTIME["project"]["license"] == DECLARED["project"]["license"]


class TestPython:
    def test_no_version_is_claimed_that_the_tests_have_not_run_on(self) -> None:
        prefix = "Programming Language :: Python :: "
        for project in (DECLARED["project"], RUNTIME["project"]):
            claimed = [each.removeprefix(prefix) for each in project["classifiers"] if each.startswith(prefix)]
            assert claimed == ["3 :: Only", "3.11"]
            assert project["requires-python"] == ">=3.11"
        assert DECLARED["tool"]["ruff"]["target-version"] == "py311"
        assert DECLARED["tool"]["pyright"]["pythonVersion"] == "3.11"
        for name in ("README.md", "CONTRIBUTING.md"):
            assert "nothing but python 3.11 is needed" in (ROOT / name).read_text(encoding="utf-8").lower()
        assert default_environment()["python_version"] >= "3.11"
        assert version("l0compress")
