"""ONNX Runtime as configured throughout: silent, with the errors that it raises."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence

import onnxruntime

# The errors of the compiled module, which declares no types.
_native = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
NATIVE_ERRORS: tuple[type[Exception], ...] = (
    _native.EPFail,
    _native.Fail,
    _native.InvalidArgument,
    _native.InvalidGraph,
    _native.InvalidProtobuf,
    _native.ModelLoaded,
    _native.NoModel,
    _native.NoSuchFile,
    _native.NotImplemented,
    _native.RuntimeException,
)
# ONNX Runtime fusions that can be slower on a CPU than what they fuse. With 1.31, Add and LayerNormalization took 9
# microseconds for 32 tokens of width 384 and 48 for 256 of them; as one operator 50 and 370.
SLOW_FUSIONS = ("SkipLayerNormFusion",)
_ERROR_CODE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_SILENT = 4
CPU_PROVIDER = "CPUExecutionProvider"


def open_session(
    model: str | bytes, *, threads: int | None = None, disabled: Sequence[str] = (), provider: str = CPU_PROVIDER
) -> onnxruntime.InferenceSession:
    """Open a model in ONNX Runtime.

    Args:
        model: the path of an ``.onnx`` file, or its content.
        threads: threads within an operator; None leaves the choice to ONNX Runtime.
        disabled: optimizers to disable.
        provider: what runs it, by ONNX Runtime's name; what that has no kernels for runs on the CPU.

    Raises:
        Exception: one of ``NATIVE_ERRORS``: the model cannot be loaded. A hostile one may also raise ValueError,
            TypeError, RuntimeError or MemoryError.
    """
    options = session_options(threads=threads, disabled=disabled)
    # Without the fallback, which prints before it retries the same thing.
    providers = list(dict.fromkeys((provider, CPU_PROVIDER)))
    return onnxruntime.InferenceSession(model, options, providers=providers, enable_fallback=0)


def session_options(*, threads: int | None = None, disabled: Sequence[str] = ()) -> onnxruntime.SessionOptions:
    """Return the options of every session; arguments as of :func:`open_session`."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SILENT
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    # Threads that keep spinning after a run would slow down whatever runs, or is timed, next in the same process.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if disabled:
        options.add_session_config_entry("optimization.disable_specified_optimizers", ";".join(disabled))
    return options


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without ONNX Runtime's code, or the error's type if it is empty.

    Example:
        >>> first_line(ValueError("[ONNXRuntimeError] : 1 : FAIL : no such operator."))
        'no such operator'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return _ERROR_CODE.sub("", lines[0]).rstrip(".") if lines else type(error).__name__
