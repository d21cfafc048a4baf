"""The public names: all there, documented, and loaded only when they are used."""

from __future__ import annotations

import inspect
import pkgutil
import subprocess
import sys

import pytest

import l0compress as l0

PUBLIC = [name for name in l0.__all__ if name != "__version__"]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(l0, name)
    assert value.__name__ == name
    assert inspect.getdoc(value)


def test_no_verb_has_the_name_of_a_module_that_would_hide_it() -> None:
    modules = {module.name for module in pkgutil.iter_modules(l0.__path__)}
    assert "verification" in modules
    assert not modules & set(l0.__all__)


def test_old_spellings_are_the_names_of_today_and_are_listed_nowhere() -> None:
    assert l0.export_csr is l0.export_bundle and l0.CsrSettings is l0.BundleSettings
    assert not {"export_csr", "CsrSettings"} & {*l0.__all__, *dir(l0)}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'l0compress' has no attribute 'compres'$"):
        _ = l0.compres


@pytest.mark.parametrize("name", ["keep_zeros_", "unshrink_state"])
def test_what_was_public_once_still_resolves_and_is_not_shown(name: str) -> None:
    assert getattr(l0, name).__name__ == name
    assert name not in dir(l0) and name not in l0.__all__


def test_importing_the_package_or_its_command_line_loads_neither_torch_nor_onnx() -> None:
    code = (
        "import sys, l0compress, l0compress.cli.app; "
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'sklearn') if m in sys.modules])"
    )
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert outcome.stdout == "[]\n"


@pytest.mark.slow
def test_the_graph_layer_loads_no_training_and_no_onnx() -> None:
    code = (
        "import sys, l0compress.graph; "
        "print([m for m in sys.modules if m.split('.')[0] in ('onnx', 'onnxruntime', 'typer', 'rich') "
        "or m.startswith(('l0compress.gates', 'l0compress.training'))])"
    )
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert outcome.stdout == "[]\n"
