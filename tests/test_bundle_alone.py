"""The wheel of the runtime where there is what it requires, and neither torch nor the rest of l0compress."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from bundles import mlp, mlp_bundle
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
MOST_MEGABYTES = 350

RUN = """
import importlib.util, sys
import numpy as np
from l0compress_runtime import load
x = np.load(sys.argv[2])
outputs = load(sys.argv[1], threads=2).run({"input": x})
np.save(sys.argv[3], outputs["output_0"])
print([name for name in ("torch", "l0compress", "onnx", "numba", "typer", "rich") if importlib.util.find_spec(name)])
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both distributions of the project, built as ``make wheels`` builds them."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(folder), "./l0compress_runtime", "."]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return {path.name.split("-")[0]: path for path in folder.glob("*.whl")}


@pytest.fixture(scope="module")
def alone(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the runtime's wheel, and links to what that requires."""
    folder = tmp_path_factory.mktemp("alone")
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheels["l0compress_runtime"]) as wheel:
        wheel.extractall(site)
    for package in set().union(*map(packages_of, required(wheels["l0compress_runtime"]))):
        (site / package.name).symlink_to(package)
    return folder / "bin" / "python"


def metadata_of(wheel: Path) -> importlib.metadata.PackageMetadata:
    name, version, *_ = wheel.name.split("-")
    return importlib.metadata.PathDistribution(zipfile.Path(wheel, f"{name}-{version}.dist-info/")).metadata


def required(wheel: Path) -> list[str]:
    """The names of what a wheel requires without any extra."""
    found = map(Requirement, metadata_of(wheel).get_all("Requires-Dist") or ())
    return [each.name for each in found if each.marker is None]


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


def files_below(folder: Path) -> Iterator[Path]:
    """Files, those in linked folders too."""
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from files_below(entry)
        elif entry.suffix != ".pyc":
            yield entry


class TestTheWheels:
    def test_the_runtime_asks_for_three_packages(self, wheels):
        assert required(wheels["l0compress_runtime"]) == ["numpy", "onnxruntime", "scipy"]

    def test_the_whole_asks_for_the_runtime_that_was_released_with_it(self, wheels):
        version = metadata_of(wheels["l0compress_runtime"])["Version"]
        assert metadata_of(wheels["l0compress"])["Version"] == version
        assert f"l0compress-runtime=={version}" in metadata_of(wheels["l0compress"]).get_all("Requires-Dist")

    def test_each_has_its_own_package_and_nothing_of_the_other(self, wheels):
        for name, wheel in wheels.items():
            with zipfile.ZipFile(wheel) as archive:
                members = set(archive.namelist())
            source = ROOT / name
            expected = {f"{name}/{file.relative_to(source).as_posix()}" for file in source.rglob("*.py")}
            assert {member for member in members if member.endswith(".py")} == expected
            assert f"{name}/py.typed" in members
            assert {member.split("/")[0].split("-")[0] for member in members} == {name}


class TestTheRuntimeAlone:
    def test_a_bundle_runs(self, alone, tmp_path):
        bundle = mlp_bundle(tmp_path / "model.l0c").path
        x = np.random.default_rng(0).standard_normal((5, 48)).astype(np.float32)
        np.save(tmp_path / "x.npy", x)
        command = [alone, "-I", "-c", RUN, bundle, tmp_path / "x.npy", tmp_path / "y.npy"]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
        assert done.stdout == "[]\n", done.stderr
        with torch.no_grad():
            expected = mlp().double()(torch.from_numpy(x).double()).numpy()
        np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, atol=1e-5)

    def test_nothing_that_it_requires_is_missing(self, alone):
        command = [sys.executable, "-m", "pip", "--python", str(alone), "check"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stdout == "No broken requirements found.\n"

    def test_it_is_small(self, alone):
        (site,) = alone.parents[1].glob("lib/python*/site-packages")
        assert sum(file.stat().st_size for file in files_below(site)) < MOST_MEGABYTES * 2**20
