"""Write ``requirements.lock``: every version that an install of the Makefile takes, each file by its hash.

Sections, one for each kind of install, start with ``# --- name``. They hold for Linux, macOS and Windows, but torch's:
PyPI's build for Linux carries CUDA, and the CPU build, from PyTorch's own index, has another file for each platform and
Python. Its section, ``torch-cpu``, holds where this script ran; elsewhere the Makefile takes torch by version.

Run by ``make lock``, which installs uv first.
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
HEADER = """\
# Written by `make lock` from pyproject.toml; not by hand. Every install of the Makefile takes its section of this file.
"""


def compiled(*options: str) -> str:
    """What uv resolves, with every version and hash."""
    command = [str(Path(sysconfig.get_path("scripts"), "uv")), "pip", "compile", "--quiet", "--universal"]
    command += ["--python-version", LOWEST_PYTHON, "--generate-hashes", "--no-header", *options]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def group(name: str) -> str:
    """A dependency group without what it depends on: the project's own versions of that are installed already."""
    return compiled("--group", name, "--no-deps")


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
    index = parser.parse_args().torch_index
    project = ("pyproject.toml", "--all-extras", "--group", "torch")
    project += tuple(option for name in ("torch", "l0compress-runtime") for option in ("--no-emit-package", name))
    sections = {"torch-cpu": cpu_torch(index), "develop": compiled(*project)}
    sections.update((name, group(name)) for name in ("torch", "models", "rivals", "formats", "yolo"))
    text = "".join(f"\n# --- {name}\n{text}" for name, text in sections.items())
    Path(ROOT, "requirements.lock").write_text(HEADER + text, encoding="utf-8")


if __name__ == "__main__":
    main()
