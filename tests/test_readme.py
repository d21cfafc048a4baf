"""What the README promises to someone who copies its first program."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from page_runner import first_program as program_of

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.slow
def test_the_fifteen_lines_work(tmp_path: Path) -> None:
    program, printed = first_program()
    assert len([line for line in program.splitlines() if line]) <= 15
    ran = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (tmp_path / "small.onnx").stat().st_size < 30_000
    # Times and last digits differ from machine to machine; what is said of the small model does not.
    assert without_numbers(ran.stdout) == without_numbers(printed)


def first_program() -> tuple[str, str]:
    """The first program of the README, and what it is said to print."""
    text = README.read_text(encoding="utf-8")
    program = program_of(text)
    after = text.split(program, 1)[1]
    lines = [line[4:] for line in after.splitlines() if line.startswith("    ")]
    return program, "\n".join(lines[: lines.index(next(line for line in lines if "agree" in line)) + 1]) + "\n"


def without_numbers(text: str) -> str:
    return re.sub(r"\d[\d,.]*(e-\d+)?", "N", text)
