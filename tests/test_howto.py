"""Every block of every how-to page runs, in the order in which a reader runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from page_runner import blocks_of

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "docs/index.md", *sorted((ROOT / "docs/howto").glob("*.md"))]
RUNNABLE = [page for page in PAGES if list(blocks_of(page.read_text(encoding="utf-8")))]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.stem)
def test_a_page_runs(page: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(ROOT / "tests/page_runner.py"), str(page)]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, f"{ran.stdout[-2000:]}\n{ran.stderr[-4000:]}"


def test_pages_are_in_the_navigation() -> None:
    navigation = (ROOT / ".ci/mkdocs.yml").read_text(encoding="utf-8")
    missing = [page.relative_to(ROOT / "docs").as_posix() for page in sorted((ROOT / "docs").rglob("*.md"))]
    assert [page for page in missing if page not in navigation] == []
