"""A bundle in a virtual environment that has numpy, scipy and onnxruntime, and no torch."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import venv
from pathlib import Path

import numpy as np
import torch
from bundles import mlp, mlp_bundle

import l0compress

RUN = """
import importlib.util, sys
import numpy as np
from l0compress.runtime import load
x = np.load(sys.argv[2])
outputs = load(sys.argv[1], threads=2).run({"input": x})
np.save(sys.argv[3], outputs["output_0"])
print([name for name in ("torch", "onnx", "numba", "typer", "rich") if importlib.util.find_spec(name)])
"""


def packages_of(name: str) -> set[Path]:
    """What an installed distribution put beside itself, and what those did that it requires."""
    distribution = importlib.metadata.distribution(name)
    root = Path(str(distribution.locate_file("")))
    tops = {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "bin")}
    found = {root / top for top in tops if not top.endswith(".pth")}
    for requirement in distribution.requires or ():
        if ";" not in requirement:
            found |= packages_of(re.split(r"[^\w.-]", requirement)[0])
    return found


def bare_environment(folder: Path) -> Path:
    """The interpreter of an environment with three packages, and what those require, linked into it."""
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for package in set().union(*map(packages_of, ("numpy", "scipy", "onnxruntime"))):
        (site / package.name).symlink_to(package)
    (site / "l0compress").symlink_to(Path(l0compress.__file__).parent)
    return folder / "bin" / "python"


def test_a_bundle_runs_in_an_environment_without_torch(tmp_path):
    python, bundle = bare_environment(tmp_path / "venv"), mlp_bundle(tmp_path / "model.l0c").path
    x = np.random.default_rng(0).standard_normal((5, 48)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    command = [python, "-c", RUN, bundle, tmp_path / "x.npy", tmp_path / "y.npy"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stdout == "[]\n", done.stderr
    with torch.no_grad():
        expected = mlp().double()(torch.from_numpy(x).double()).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, atol=1e-5)
