"""Write ``requirements.lock``: every version that an install of the Makefile takes, each file by its hash.

Sections, one for each kind of install, start with ``# --- name``. They hold for Linux, macOS and Windows, but torch's:
PyPI's build for Linux carries CUDA, and the CPU build, from PyTorch's own index, has another file for each platform and
Python. Its section, ``torch-cpu``, holds where this script ran; elsewhere the Makefile takes torch by version.

Run by ``make lock``, which installs uv first. With ``--keep`` the versions that the file has already stay, and only
what is missing is looked for.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOWEST_PYTHON = "3.11"
# With what they depend on, for environments of their own.
WHOLE_GROUPS = ("docs", "release")
GROUPS = ("torch", "models", "rivals", "formats", "yolo")
HEADER = """\
# Written by `make lock` from pyproject.toml; not by hand. Every install of the Makefile takes its section of this file.
"""


def compiled(preferred: str, *options: str) -> str:
    """What uv resolves, with every version and hash; versions of the section ``preferred`` stay where they can."""
    command = [str(Path(sysconfig.get_path("scripts"), "uv")), "pip", "compile", "--quiet", "--universal"]
    command += ["--python-version", LOWEST_PYTHON, "--generate-hashes", "--no-header", *options]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "section.txt")
        output.write_text(preferred, encoding="utf-8")
        subprocess.run([*command, "--output-file", str(output)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return output.read_text(encoding="utf-8")


def group(name: str, preferred: str = "") -> str:
    """A dependency group without what it depends on: the project's own versions of that are installed already."""
    return compiled(preferred, "--group", name, "--no-deps")


def locked_sections() -> dict[str, str]:
    """The sections of the lock file as it is, by name."""
    _, *parts = Path(ROOT, "requirements.lock").read_text(encoding="utf-8").split("\n# --- ")
    return {name: text for name, _, text in (part.partition("\n") for part in parts)}


def cpu_torch(index: str) -> str:
    """The CPU build of torch for this machine, with the hash of its one file."""
    wanted = group("torch").split()[0]
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--index-url", index]
        subprocess.run([*pip, "--dest", folder, wanted], cwd=ROOT, check=True)
        (wheel,) = Path(folder).glob("torch-*.whl")
        version, cpu = wheel.name.split("-")[1], hashlib.sha256(wheel.read_bytes()).hexdigest()
    python = ".".join(platform.python_version_tuple()[:2])
    here = {"sys_platform": sys.platform, "platform_machine": platform.machine(), "python_version": python}
    marker = " and ".join(f"{name} == '{value}'" for name, value in here.items())
    return f"torch=={version} ; {marker} \\\n    --hash=sha256:{cpu}\n"


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--torch-index", required=True, help="where CPU builds of torch are")
    parser.add_argument("--keep", action="store_true", help="keep the versions that the file has")
    options = parser.parse_args()
    old = locked_sections() if options.keep else {}
    project = ("pyproject.toml", "--all-extras", "--group", "torch")
    project += tuple(option for name in ("torch", "l0compress-runtime") for option in ("--no-emit-package", name))
    sections = {"torch-cpu": cpu_torch(options.torch_index), "develop": compiled(old.get("develop", ""), *project)}
    sections.update((name, group(name, old.get(name, ""))) for name in GROUPS)
    sections.update((name, compiled(old.get(name, ""), "--group", name)) for name in WHOLE_GROUPS)
    text = "".join(f"\n# --- {name}\n{text}" for name, text in sections.items())
    Path(ROOT, "requirements.lock").write_text(HEADER + text, encoding="utf-8")


if __name__ == "__main__":
    main()
