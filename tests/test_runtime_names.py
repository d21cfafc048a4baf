"""The runtime has two names, ``l0compress_runtime`` and the older ``l0compress.runtime``; its classes are the same."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse

import l0compress
import l0compress.errors
import l0compress.runtime
import l0compress_runtime
from l0compress_runtime.layers import SparseLinear

# Each in an interpreter of its own, since it matters which name is imported first.
OLD_FIRST = "import l0compress.runtime.engines.threads as old, l0compress_runtime.engines.threads as new"
NEW_FIRST = "import l0compress_runtime.engines.threads as new, l0compress.runtime.engines.threads as old"


def printed(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_what_the_old_name_has_always_had() -> None:
    assert set(l0compress.runtime.__all__) == {"Bundle", "load"}
    assert l0compress.runtime.load is l0compress_runtime.load
    assert l0compress.runtime.Bundle is l0compress_runtime.Bundle


@pytest.mark.parametrize("imports", [OLD_FIRST, NEW_FIRST])
def test_a_module_is_one_by_either_name(imports: str) -> None:
    assert printed(f"{imports}; print(old is new, new.__name__, new.__spec__.name)") == (
        "True l0compress_runtime.engines.threads l0compress_runtime.engines.threads\n"
    )


@pytest.mark.parametrize("name", ["l0compress.runtime.nothing", "l0compress.runtime.engines.nothing"])
def test_there_is_no_module_by_the_old_name_that_there_is_not_by_the_new_one(name: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=rf"^No module named '{name}'$"):
        importlib.import_module(name)


def test_a_pickle_from_before_the_runtime_had_its_own_name_opens() -> None:
    layer = SparseLinear(scipy.sparse.csr_array(np.eye(3, dtype=np.float32)), np.ones(3, np.float32))
    now = pickle.dumps(layer)
    before = now.replace(b"l0compress_runtime.layers", b"l0compress.runtime.layers")
    assert before != now
    opened = pickle.loads(before)
    assert type(opened) is SparseLinear
    np.testing.assert_array_equal(opened.weight.toarray(), np.eye(3))


@pytest.mark.parametrize("name", ["L0Error", "InputError", "RunError"])
def test_errors_are_the_same_classes_everywhere(name: str) -> None:
    assert getattr(l0compress.errors, name) is getattr(l0compress_runtime, name)
    assert pickle.loads(f"cl0compress.errors\n{name}\n.".encode()) is getattr(l0compress_runtime, name)


def test_what_the_runtime_raises_is_caught_by_the_classes_of_the_package() -> None:
    with pytest.raises(l0compress.errors.RunError, match=r"^Cannot read bundle 'none\.l0c': there is no such file"):
        l0compress_runtime.load("none.l0c")
    assert issubclass(l0compress_runtime.RunError, l0compress.L0Error)


def test_its_public_names_resolve_and_no_others_do() -> None:
    for name in l0compress_runtime.__all__:
        assert getattr(l0compress_runtime, name)
        assert name in dir(l0compress_runtime)
    assert l0compress_runtime.__version__ == l0compress.__version__
    with pytest.raises(AttributeError, match=r"^module 'l0compress_runtime' has no attribute 'lod'$"):
        _ = l0compress_runtime.lod


def test_the_errors_alone_load_nothing() -> None:
    code = (
        "import sys, l0compress_runtime.errors; "
        "print({name.split('.')[0] for name in sys.modules} & {'numpy', 'scipy', 'onnxruntime', 'torch', 'l0compress'})"
    )
    assert printed(code) == "set()\n"
