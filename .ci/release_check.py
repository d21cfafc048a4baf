"""Build both distributions as they would be released, and use them as somebody would who installs them.

    make release-check              # EXTRAS=datasets,numba: only these extras

Each step in an environment of its own, outside the repository: the metadata by twine; the README's first program with
the whole package; a bundle with the runtime alone, where torch must be missing; and every extra, which must install
beside the torch that is there and bring what it is for.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from page_runner import first_program

ROOT = Path(__file__).resolve().parents[1]
PROJECTS = {"l0compress": ROOT, "l0compress_runtime": ROOT / "l0compress_runtime"}
# What can be imported once the extra is installed; the others add nothing that is imported.
BRINGS = {
    "bench": "matplotlib", "datasets": "datasets", "distributed": "accelerate", "images": "PIL",
    "lightning": "lightning", "numba": "numba", "openvino": "openvino", "plot": "matplotlib", "ray": "ray",
    "report": "jinja2", "search": "optuna", "sentence-transformers": "sentence_transformers", "tables": "pandas",
    "transformers": "transformers", "zoo": "transformers",
}  # fmt: skip
_LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)")
_RUNTIME = """
import importlib.util, sys
import numpy as np
from l0compress_runtime import load
assert importlib.util.find_spec("torch") is None, "torch came along"
print(load(sys.argv[1], threads=1).run({"input": np.zeros((1, 1, 8, 8), np.float32)})["output_0"].shape)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    everything = ",".join(name for name in extras if name != "dev")
    parser.add_argument("--extras", default=everything, help="default: all of them")
    parser.add_argument("--torch", required=True, help="the requirement that torch is installed by")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        wheels = build(place / "dist")
        check_links()
        whole = environment(place / "whole", [given.torch, *map(str, wheels)])
        run_readme(whole, place)
        run([whole, "-m", "l0compress", "--version"], place)
        alone = environment(place / "alone", [str(wheel) for wheel in wheels if "runtime" in wheel.name])
        run([alone, "-c", _RUNTIME, str(place / "small.l0c")], place)
        for extra in filter(None, given.extras.split(",")):
            check_extra(extra, place, wheels, given.torch)
    return 0


def build(dist: Path) -> list[Path]:
    """Source and wheel of both distributions, each of them checked by twine; returns the wheels."""
    for project in PROJECTS.values():
        run([sys.executable, "-m", "hatchling", "build", "-d", str(dist)], project)
    run([sys.executable, "-m", "twine", "check", "--strict", *map(str, sorted(dist.iterdir()))], ROOT)
    return sorted(dist.glob("*.whl"))


def check_links() -> None:
    """Every relative link of the documentation leads to a file."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    broken = [
        f"{page.relative_to(ROOT)}: {link}"
        for page in pages
        for link in links_of(page)
        if not (page.parent / link).exists()
    ]
    if broken:
        sys.exit("Broken links:\n" + "\n".join(broken))


def links_of(page: Path) -> Iterator[str]:
    """The relative links of a page, outside its blocks of code."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return (match[1] for match in _LINK.finditer(text))


def environment(folder: Path, requirements: Sequence[str]) -> str:
    """The Python of a new environment with these requirements."""
    started = time.monotonic()
    run([sys.executable, "-m", "venv", str(folder)], ROOT)
    python = str(folder / "bin" / "python")
    run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements], ROOT)
    sizes = (file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    print(f"{folder.name}: {sum(sizes) / 1e6:,.0f} MB in {time.monotonic() - started:.0f} s", flush=True)
    return python


def run_readme(python: str, place: Path) -> None:
    """The README's first program, word for word, and a bundle of what it leaves."""
    program = first_program((ROOT / "README.md").read_text(encoding="utf-8"))
    more = 'l0.export_bundle(result.small, "small.l0c", reference=result.masked)\n'
    run([python, "-c", program + more], place)


def check_extra(extra: str, place: Path, wheels: Sequence[Path], torch: str) -> None:
    """An extra installs beside torch without another one taking its place, and brings what it is for."""
    runtime = [str(wheel) for wheel in wheels if "runtime" in wheel.name]
    (whole,) = (wheel for wheel in wheels if "runtime" not in wheel.name)
    python = environment(place / extra, [torch, *runtime, f"l0compress[{extra}] @ {whole.as_uri()}"])
    modules = ["torch", "l0compress", *([BRINGS[extra]] if extra in BRINGS else [])]
    check = f"import {', '.join(modules)}; assert torch.__version__.split('+')[0] == {torch.split('==')[1]!r}"
    run([python, "-c", check], place)


def run(command: Sequence[str], where: Path) -> None:
    """One command, away from what the repository has installed."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    print("$", " ".join(part if "\n" not in part else "..." for part in command), flush=True)
    subprocess.run(command, cwd=where, env=kept, check=True)


if __name__ == "__main__":
    sys.exit(main())
