"""The command line as a benchmark calls it: aloud, so that what it prints can be repeated."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def l0(*words: object) -> None:
    """Run one command of l0compress from this folder, whose modules it can then import.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    command = [sys.executable, "-m", "l0compress", *(str(word) for word in words)]
    print("$ l0compress " + " ".join(command[3:]), flush=True)
    subprocess.run(command, check=True, cwd=Path(__file__).parent)


def print_budget(run: Path) -> None:
    """How much of its budget a finished run uses."""
    target = json.loads((run / "result.json").read_text())["target"]
    share = target["reached"] / target["limit"]
    print(f"budget: {target['reached']:,} of at most {target['limit']:,} {target['unit']} ({share:.1%})")
