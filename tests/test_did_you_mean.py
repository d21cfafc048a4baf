"""What was probably meant, said with what is wrong; completion; and help that is there at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run_cli

from l0compress.errors import did_you_mean, did_you_mean_path, nearest


def said(*arguments: str | Path) -> str:
    outcome = run_cli(*arguments)
    assert outcome.exit_code == 2 and outcome.stdout == ""
    # The frame that typer draws around its own errors breaks lines at the terminal's width.
    return " ".join(outcome.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    ("flags", "meant"),
    [
        (("--target", "mac=0.5"), "Did you mean 'macs'?"),
        (("--target", "int8byte=0.5"), "Did you mean 'int8_bytes'?"),
        (("--target", "macs=0.5", "--method", "fischer"), "Did you mean 'fisher'?"),
        (("--target", "macs=0.5", "--granularity", "weight"), "Did you mean 'weights'?"),
        (("--target", "macs=0.5", "--data", "digit"), "Did you mean 'digits'?"),
        (("--target", "macs=0.5", "--epoch", "3"), "No such option: --epoch (Possible options: --epochs, --keep)"),
    ],
)
def test_units_names_kinds_of_data_and_flags(mlp_pt2: Path, flags: tuple[str, ...], meant: str) -> None:
    data = () if "--data" in flags else ("--data", "digits")
    assert meant in said("finetune", mlp_pt2, *data, *flags)


def test_commands_formats_and_layers(mlp_pt2: Path) -> None:
    assert "No such command 'exprot'. Did you mean 'export'?" in said("exprot")
    assert "'onx' is not one of 'onnx', 'bundle', 'pt2', 'huggingface'. Did you mean 'onnx'?" in said(
        "export", "--format", "onx"
    )
    assert "The nearest names are '2'" in said("inspect", mlp_pt2, "--keep", "22")


def test_files_beside_the_one_that_is_missing(mlp_pt2: Path, finished: Path) -> None:
    assert f"Did you mean {str(mlp_pt2)!r}?" in said("inspect", mlp_pt2.with_name("mlps.pt2"))
    assert f"Did you mean {str(finished / 'blobs.npz')!r}?" in said("inspect", mlp_pt2, "--data", finished / "blob.npz")
    assert f"Did you mean {str(finished / 'run/model.onnx')!r}?" in said(
        "verify", finished / "run/model.onx", "--against", finished / "run"
    )


def test_nothing_is_guessed_where_nothing_is_near(tmp_path: Path) -> None:
    for name in ("weights.pt2", "noise.npz"):
        (tmp_path / name).touch()
    assert did_you_mean_path(tmp_path / "none.npz") == "" and did_you_mean("flops", ["macs", "params"]) == ""
    assert nearest("x", []) is None and did_you_mean_path(tmp_path / "no" / "folder" / "x") == ""


class TestShell:
    def test_completion_can_be_installed_and_knows_commands_and_choices(self) -> None:
        assert "--install-completion" in run_cli("--help").stdout
        assert _completed("l0compress ex", 1) == ["export"]
        assert _completed("l0compress export --quantize int8-s", 3) == ["int8-static"]
        assert _completed("l0compress finetune --granularity w", 3) == ["weights"]
        assert _completed("l0compress export --format b", 3) == ["bundle"]

    def test_help_imports_neither_torch_nor_jinja2(self) -> None:
        watch = "import sys; from l0compress.cli.app import main\ntry: main()\nexcept SystemExit: pass\n"
        watch += "print(sorted({'torch', 'jinja2', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules)))"
        done = subprocess.run(
            [sys.executable, "-c", watch, "--help"], capture_output=True, text=True, check=True, timeout=60
        )
        assert done.stdout.splitlines()[-1] == "[]"


def _completed(line: str, word: int) -> list[str]:
    """What bash would be offered for the last word of a line."""
    asked = {"_L0COMPRESS_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(word)}
    command = [sys.executable, "-W", "ignore", "-m", "l0compress"]
    done = subprocess.run(command, env={**os.environ, **asked}, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout.split()
