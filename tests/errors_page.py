"""``docs/errors.md``: wrong inputs, and the message that each gives.

PYTHONPATH=.:tests python tests/errors_page.py        # write the page
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

from bad_files import build
from bad_inputs import CASES, CHAPTERS, USUAL
from conftest import run_cli

PAGE = Path(__file__).resolve().parent.parent / "docs" / "errors.md"
# What other libraries say differs between their versions.
_FOREIGN = re.compile(r" \((?:\w+Error|BadZipFile|EOFError|\w*Exception): .*?\)(?=[.;,:] ?[A-Z]|\.$|$| Nothing|\. )")
_VERSION = re.compile(r"transformers \d[\w.]*\d")


def message_of(stderr: str) -> str:
    """The message in what a command printed, without what other libraries said."""
    line = stderr.strip().splitlines()[-1].removeprefix("Error: ")
    line = line.replace(f"{PAGE.parent.parent}{os.sep}", "")
    return _VERSION.sub("transformers", _FOREIGN.sub(" (…)", line))


def page(messages: dict[str, str]) -> str:
    """``docs/errors.md``: every case with its message."""
    lines = [
        "# What is refused, and how",
        "",
        f"{len(CASES)} wrong inputs. Each gives one message, exit code 2 and no traceback, and nothing is written or "
        "changed.",
        "The tests trigger all of them, and `make errors` generates this page from the results. Messages of other",
        "libraries are shortened to (…). Where `--data` and `--target` are not shown, they are what they should be.",
    ]
    for title, chapter in CHAPTERS.items():
        lines += ["", f"## {title}", "", "| what is wrong | command | message |", "|---|---|---|"]
        for name in chapter:
            command = " ".join(map(_shell, CASES[name].arguments)).replace(f" {' '.join(USUAL)}", "")
            command = command.replace(" --epochs 3", "")
            cells = (name, f"`{command.replace('|', '')}`", messages[name].replace("|", "\\|"))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _shell(argument: str) -> str:
    return argument if re.fullmatch(r"[\w./:=,-]+", argument) else f"'{argument}'"


def main() -> None:
    """Run every case and write the page."""
    with tempfile.TemporaryDirectory() as name:
        build(Path(name))
        messages = {case: message_of(run_cli(*bad.arguments).stderr) for case, bad in CASES.items()}
        os.chdir(PAGE.parent)
    PAGE.write_text(page(messages), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE} with {len(messages)} cases\n")


if __name__ == "__main__":
    main()
