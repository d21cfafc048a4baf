"""Plant faults, one at a time, in a copy of the package, and see a test fail: ``make mutants``.

``--only TEXT`` plants those alone whose file or new text contains TEXT. The exit status is 1 if a mutant survives, if
its text is not found exactly once, or if its tests fail without it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mutant_list import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parent.parent
PASSED, FAILED = 0, 1
SECONDS = 300  # a fault may make a loop endless


def copied(to: Path) -> Path:
    """A copy of the package and of its tests."""
    shutil.copy(ROOT / "pyproject.toml", to)
    for folder in ("l0compress", "tests", "benchmarks"):
        shutil.copytree(ROOT / folder, to / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return to


def outcome(copy: Path, tests: tuple[str, str]) -> int | None:
    """What pytest says in the copy; None if it did not come to an end."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"tests/graph/{tests[0]}"]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [*command, *(["-k", tests[1]] if tests[1] else [])],
            cwd=copy,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return None
    return done.returncode


def verdict(copy: Path, mutant: Mutant) -> str:
    file = copy / "l0compress" / "graph" / mutant.file
    source = file.read_text()
    if source.count(mutant.old) != 1:
        return f"ERROR: the text occurs {source.count(mutant.old)} times"
    file.write_text(source.replace(mutant.old, mutant.new))
    try:
        compile(file.read_text(), str(file), "exec")
        code = outcome(copy, mutant.tests)
    except SyntaxError as error:
        return f"ERROR: {error}"
    finally:
        file.write_text(source)
    if code in (FAILED, None):
        return "killed"
    return "SURVIVED" if code == PASSED else f"ERROR: pytest ended with {code}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    chosen = [mutant for mutant in MUTANTS if parser.parse_args().only in f"{mutant.file} {mutant.new}"]
    started, verdicts = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        copy = copied(Path(folder))
        for tests in sorted({mutant.tests for mutant in chosen}):
            code = outcome(copy, tests)
            if code != PASSED:
                verdicts.append(f"ERROR: without a fault pytest ended with {code}")
                print(f"{verdicts[-1]}: {' -k '.join(tests)}", flush=True)
        for mutant in chosen:
            verdicts.append(verdict(copy, mutant))
            first = " ".join(mutant.old.split())[:70]
            print(f"{time.monotonic() - started:5.0f} s  {verdicts[-1]:10} {mutant.file:24} {first}", flush=True)
    killed = verdicts.count("killed")
    print(f"\n{killed} of {len(chosen)} killed in {time.monotonic() - started:.0f} s")
    return 0 if killed == len(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
