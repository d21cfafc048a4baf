"""What runs an ONNX file: an execution provider of ONNX Runtime, or OpenVINO by itself.

One name each: that of ONNX Runtime's provider in lower case, without its ending: ``cpu``, ``cuda``, ``coreml``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import onnx
import onnxruntime
import torch

from l0compress.errors import NOTHING_RUN, InputError, RunError
from l0compress_runtime.sessions import NATIVE_ERRORS, open_session

CPU, OPENVINO = "cpu", "openvino"
_ENDING = "ExecutionProvider"
# It is in every build, and sends what it runs to a service.
_REMOTE = ("azure",)
Feeds: TypeAlias = "Mapping[str, np.ndarray]"


@dataclass(frozen=True)
class OnProvider:
    """An ONNX file and what is to run it, for :func:`l0compress.measure.bench.bench`."""

    path: Path
    provider: str


def on_provider(path: Path, provider: str) -> Path | OnProvider:
    """An artifact for a provider, which is for ONNX files alone: others are run as they always are.

    >>> on_provider(Path("model.onnx"), "cuda").provider, on_provider(Path("model.pt2"), "cuda").name
    ('cuda', 'model.pt2')
    """
    return OnProvider(path, provider) if path.suffix == ".onnx" else path


@dataclass(frozen=True)
class Port:
    """An input as the file declares it: sizes are numbers, the names of free ones, or None."""

    name: str
    shape: tuple[int | str | None, ...]
    dtype: torch.dtype


class Running(Protocol):
    """An ONNX file that was loaded."""

    inputs: tuple[Port, ...]
    output_names: tuple[str, ...]
    properties: Mapping[str, str]

    def run(self, feeds: Feeds) -> Sequence[Any]:
        """The outputs in their order. Raises one of ``ERRORS``."""
        ...


# What loading or running raises: OpenVINO has one type for everything.
ERRORS = (*NATIVE_ERRORS, RuntimeError)


def available_providers() -> tuple[str, ...]:
    """What can run ONNX files here.

    >>> "cpu" in available_providers()
    True
    """
    of_onnxruntime = (name.removesuffix(_ENDING).lower() for name in onnxruntime.get_available_providers())
    found = {CPU, *of_onnxruntime} - set(_REMOTE)
    if importlib.util.find_spec(OPENVINO) is not None:
        found.add(OPENVINO)
    return tuple(sorted(found))


def runtime_name(provider: str) -> str:
    """What a provider belongs to, as messages name it.

    >>> runtime_name("cpu")
    'ONNX Runtime'
    """
    return "OpenVINO" if provider == OPENVINO and _name_in_onnxruntime(provider) is None else "ONNX Runtime"


def check_provider(name: str) -> str:
    """The name, if that can run files here.

    Raises:
        InputError: it cannot.
    """
    known = available_providers()
    if name in known:
        return name
    raise InputError(
        f"Provider {name!r} does not run ONNX files here; what does: {', '.join(known)}.",
        fix="Install the build of onnxruntime that has it, or for openvino pip install 'l0compress[openvino]'.",
        assurance=NOTHING_RUN,
    )


def opened(path: Path, provider: str, *, threads: int | None, disabled: Sequence[str]) -> Running:
    """Load a file.

    Raises:
        InputError: nothing of that name runs files here.
        RunError: the provider is there but does not start.
        Exception: one of ``ERRORS``: the file cannot be loaded.
    """
    check_provider(provider)
    name = _name_in_onnxruntime(provider)
    if name is None:
        return _OpenVino(path, threads)
    session = open_session(str(path), threads=threads, disabled=disabled, provider=name)
    if name not in session.get_providers():
        raise RunError(
            f"ONNX Runtime has the provider {provider!r}, but it does not start on this machine.",
            fix="Check its driver and libraries, or omit --provider.",
            assurance=NOTHING_RUN,
        )
    return _OnnxRuntime(session)


def _name_in_onnxruntime(provider: str) -> str | None:
    names = {name.removesuffix(_ENDING).lower(): name for name in onnxruntime.get_available_providers()}
    return names.get(provider)


class _OnnxRuntime:
    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self.inputs = tuple(Port(one.name, tuple(one.shape), _dtype(one.type)) for one in session.get_inputs())
        self.output_names = tuple(one.name for one in session.get_outputs())
        self.properties: Mapping[str, str] = session.get_modelmeta().custom_metadata_map

    def run(self, feeds: Feeds) -> Sequence[Any]:
        return self._session.run(None, dict(feeds))


@cache
def _core() -> Any:
    """OpenVINO, once for each process.

    Each core replaces the stack that signals are handled on, and puts back what it found when it goes. Of two that
    overlap the second puts back a stack that is gone, and the next signal, such as Ctrl-C, ends the process.
    """
    import openvino

    return openvino.Core()


class _OpenVino:
    """On the CPU, in float32: by default it takes less where the processor has it, and would not be equal."""

    def __init__(self, path: Path, threads: int | None) -> None:
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        self._compiled = _core().compile_model(path, "CPU", settings)
        model = onnx.load(path, load_external_data=False)
        stored = {tensor.name for tensor in model.graph.initializer}
        self.inputs = tuple(_port(value) for value in model.graph.input if value.name not in stored)
        self.output_names = tuple(value.name for value in model.graph.output)
        self.properties: Mapping[str, str] = {entry.key: entry.value for entry in model.metadata_props}

    def run(self, feeds: Feeds) -> Sequence[Any]:
        outputs = self._compiled(dict(feeds), share_inputs=True, share_outputs=False)
        return [outputs[position] for position in range(len(self.output_names))]


def _port(value: onnx.ValueInfoProto) -> Port:
    tensor = value.type.tensor_type
    sizes = (dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in tensor.shape.dim)
    return Port(value.name, tuple(sizes), getattr(torch, str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))))


_DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(float16)": torch.float16,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(int8)": torch.int8,
    "tensor(uint8)": torch.uint8,
    "tensor(bool)": torch.bool,
}


def _dtype(text: str) -> torch.dtype:
    return _DTYPES.get(text, torch.float32)
