"""Whatever is wrong with the input: one clear message, exit code 2, no traceback, and nothing written."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from bad_files import build
from bad_inputs import CASES
from conftest import run_cli
from errors_page import PAGE, message_of, page

REPOSITORY = Path(__file__).resolve().parent.parent
# What a message tells the reader to do.
FIX = re.compile(
    r"(Add|Ask|Build|Change|Check|Choose|Copy|Do not|Export|Fill|Give|Make|Name|Omit|Pass|Remove|Rename|Repair|Return"
    r"|Save|Separate|Start|Take|Write|Download|Did you mean|A model needs|do not use it|pass --|such as"
    r"|Supported units are|expected one of)\b"
)
MESSAGES: dict[str, str] = {}
SAMPLE = ("a pickle that runs code", "a table without a target")


def contents(folder: Path) -> dict[str, str]:
    """Every file and folder under a folder, with a digest of what is in it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory of all cases: none may change it, so one is enough."""
    folder = tmp_path_factory.mktemp("bad")
    before = Path.cwd()
    build(folder)
    os.chdir(before)
    return folder


@pytest.fixture
def folder(built: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(built)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return built


@pytest.mark.parametrize("name", CASES)
def test_bad_input(folder: Path, name: str) -> None:
    case, before = CASES[name], contents(folder)
    outcome = run_cli(*case.arguments)
    lines = outcome.stderr.splitlines()
    MESSAGES[name] = message_of(outcome.stderr)
    assert lines[-1].startswith("Error: " + case.message), outcome.stderr
    assert sum(line.startswith("Error: ") for line in lines) == 1 and "Traceback" not in outcome.stderr, outcome.stderr
    assert FIX.search(lines[-1]), f"it names no fix: {lines[-1]}"
    assert outcome.exit_code == 2
    assert outcome.stdout == ""
    assert contents(folder) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLE)
def test_the_same_in_a_process_of_its_own(folder: Path, name: str) -> None:
    case, before = CASES[name], contents(folder)
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    done = subprocess.run(
        [sys.executable, "-m", "l0compress", *case.arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert done.stderr.splitlines() == ["Error: " + done.stderr.splitlines()[0].removeprefix("Error: ")]
    assert done.stderr.startswith("Error: " + case.message)
    assert contents(folder) == before


def test_the_page_of_errors_is_current() -> None:
    if set(MESSAGES) != set(CASES):
        pytest.skip("only some cases were run")
    assert PAGE.read_text(encoding="utf-8") == page(MESSAGES), "make errors writes docs/errors.md anew"
