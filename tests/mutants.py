"""Plant faults, one at a time, in a copy of the package, and see a test fail: ``make mutants``.

``--only TEXT`` plants those alone whose place or new text contains TEXT. The exit status is 1 if a mutant survives, if
its place is not found exactly once, or if its tests fail without it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from mutant import Fault, NotPlantedError
from mutant_list import MUTANTS

ROOT = Path(__file__).resolve().parent.parent
PASSED, FAILED, WRONG_PACKAGE = 50, 51, 99  # pytest's own statuses, moved away from that of a crash
SECONDS = 600  # a fault may make a loop endless
MEMORY = 12 * 2**30  # or ask for more memory than there is


def copied(to: Path) -> Path:
    """A copy of both packages and of their tests."""
    shutil.copy(ROOT / "pyproject.toml", to)
    for folder in ("l0compress", "l0compress_runtime", "tests", "benchmarks"):
        shutil.copytree(ROOT / folder, to / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return to


def outcome(copy: Path, files: Sequence[str], which: str = "") -> int | None:
    """What pytest says in the copy, in a process of its own; None if it did not come to an end."""
    process = get_context("fork").Process(target=run_tests, args=(copy, files, which))
    process.start()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
        return None
    return process.exitcode


def run_tests(copy: Path, files: Sequence[str], which: str) -> None:
    """Run pytest on the package of the copy, silently, and exit with its status."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    silence = os.open(copy / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(silence, stream)
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    for name in ("l0compress.errors", "l0compress_runtime"):
        if copy not in Path(str(importlib.import_module(name).__file__)).resolve().parents:
            os._exit(WRONG_PACKAGE)
    command = ["-x", "-q", "-p", "no:cacheprovider", *(f"tests/graph/{file}" for file in files)]
    os._exit(PASSED + int(pytest.main([*command, *(["-k", which] if which else [])])))


def warm_up() -> None:
    """Load what every test needs except the package itself, so that each process starts in a moment."""
    torch.set_num_threads(1)
    for name in ("scipy.sparse.csgraph", "sympy", "onnx"):
        importlib.import_module(name)
    torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(2, 2),))


def verdict(copy: Path, mutant: Fault) -> str:
    try:
        file, faulty = mutant.planted(copy)
        compile(faulty, str(file), "exec")
    except (NotPlantedError, SyntaxError) as error:
        return f"ERROR: {error}"
    source = file.read_text()
    file.write_text(faulty)
    try:
        code = outcome(copy, mutant.tests[:1], mutant.tests[1])
    finally:
        file.write_text(source)
    if code in (FAILED, None):
        return "killed"
    return "SURVIVED" if code == PASSED else f"ERROR: pytest ended with {code}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    only = parser.parse_args().only
    chosen = [mutant for mutant in MUTANTS if only in f"{mutant.where} {mutant.new}"]
    if not chosen:
        parser.error(f"no mutant's place or new text contains {only!r}")
    started, verdicts = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        copy = copied(Path(folder).resolve())
        warm_up()
        for mutant in chosen:
            verdicts.append(verdict(copy, mutant))
            first = " ".join(mutant.old.split())[:70]
            print(f"{time.monotonic() - started:5.0f} s  {verdicts[-1]:10} {mutant.where:24} {first}", flush=True)
        code = outcome(copy, sorted({mutant.tests[0] for mutant in chosen}))
        if code != PASSED:
            verdicts.append("ERROR: the tests fail without a fault")
            print(f"{verdicts[-1]}\n{(copy / 'output.txt').read_text()[-3000:]}")
    killed = verdicts.count("killed")
    print(f"\n{killed} of {len(chosen)} killed in {time.monotonic() - started:.0f} s")
    return 0 if killed == len(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
