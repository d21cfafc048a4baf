"""ONNX Runtime with the interface of a module: tensors in, named tensors out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor

from l0compress.errors import InputError, RunError
from l0compress.export.past import completed
from l0compress.export.providers import CPU, ERRORS, opened, runtime_name
from l0compress.verification.calls import Call, named_leaves
from l0compress_runtime.sessions import first_line
from l0compress_runtime.tuning import batch_dim_of, example_shape

OUTPUT_NAMES_KEY = "l0compress.outputs"
QUANTIZATION_KEY = "l0compress.quantization"
TOLERANCE_KEY = "l0compress.tolerance"
EXAMPLE_KEY = "l0compress.example"


@dataclass(frozen=True)
class TensorSpec:
    """An input of an artifact.

    Attributes:
        name: its name in the model.
        shape: None where a dimension is free.
        dtype: of its elements.
        example: the sizes that the model was captured with; empty if the artifact does not record them.
        batch_dim: the batch dimension; None if there is none.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: torch.dtype
    example: tuple[int, ...] = ()
    batch_dim: int | None = 0

    def described(self) -> str:
        """Return dtype and shape in words.

        Example:
            >>> TensorSpec("image", (None, 3, 8), torch.float32).described()
            'float32 (any, 3, 8)'
        """
        sizes = ", ".join("any" if size is None else str(size) for size in self.shape)
        return f"{str(self.dtype).removeprefix('torch.')} ({sizes})"


class OnnxSession:
    """An ONNX file that is called like the model that it was exported from.

    Positional arguments fill the inputs in order; keyword arguments fill those of their name. Both are flattened as in
    the export (``batch={"image": x}`` fills ``batch_image``); non-tensors were fixed by the export and are
    ignored. Past key values that a call leaves out are empty. The result maps output names to tensors.

    Args:
        path: the ``.onnx`` file.
        threads: threads within an operator; None leaves the choice to ONNX Runtime.
        disabled: ONNX Runtime optimizers to disable.
        provider: what runs it, see :mod:`l0compress.export.providers`.

    Attributes:
        quantization: how the file was quantized, such as ``int8 dynamic``; empty if it is float.
        tolerance: how closely a quantized file agrees with its source; None if it is as exact as floats are.

    Raises:
        InputError: the provider does not run files here.
        RunError: the file is missing, is not an ONNX model, or needs an operator that the provider lacks on this
            machine.
    """

    def __init__(
        self, path: str | Path, *, threads: int | None = None, disabled: Sequence[str] = (), provider: str = CPU
    ) -> None:
        self.path = Path(path)
        try:
            self._running = opened(self.path, provider, threads=threads, disabled=disabled)
        except ERRORS as error:
            raise RunError(
                f"{runtime_name(provider)} cannot load {self.path}: {first_line(error)}.",
                fix="Check the path, or export the model again.",
            ) from error
        properties = self._running.properties
        declared = properties.get(OUTPUT_NAMES_KEY)
        self.quantization = properties.get(QUANTIZATION_KEY, "")
        self.tolerance = _positive(properties.get(TOLERANCE_KEY))
        self.output_names = tuple(json.loads(declared) if declared else self._running.output_names)
        examples = example_sizes(properties)
        self.inputs = tuple(
            TensorSpec(
                port.name,
                tuple(_size(dim) for dim in port.shape),
                port.dtype,
                examples.get(port.name, ()),
                batch_dim_of(port.shape),
            )
            for port in self._running.inputs
        )

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Run the model; return outputs by name.

        Raises:
            InputError: an input is missing, is not one of the model's, or has a shape or dtype that it does not accept.
        """
        run = self.bound(Call(args, kwargs))
        try:
            outputs = run()
        except ERRORS as error:
            takes = ", ".join(f"{spec.name} {spec.described()}" for spec in self.inputs)
            raise InputError(
                f"{self.path} cannot run on these inputs: {first_line(error)}.", fix=f"It takes {takes}."
            ) from error
        return {name: torch.as_tensor(value) for name, value in zip(self.output_names, outputs, strict=True)}

    def bound(self, call: Call) -> Callable[[], Sequence[Any]]:
        """Return a function that runs one call with its inputs already converted: what a timing repeats.

        Raises:
            InputError: an input is missing, or is not one of the model's.
        """
        feeds = self.feeds(call)
        return lambda: self._running.run(feeds)

    def feeds(self, call: Call) -> dict[str, np.ndarray]:
        """Return the arrays of one call by input name, as ONNX Runtime takes them.

        Raises:
            InputError: an input is missing, or is not one of the model's.
        """
        names = [spec.name for spec in self.inputs]
        given = completed(given_tensors(names, call.args, call.kwargs), self.inputs)
        tensors = named_feeds(names, (), given, source=self.path)
        return {name: tensor.numpy(force=True) for name, tensor in tensors.items()}

    def example_call(self, batch_size: int = 2, *, seed: int = 0) -> Call:
        """Make a call from the input shapes alone; see :func:`example_of`.

        Example: an input ``image`` of shape ``(batch, 3, 8, 8)`` gives ``Call(kwargs={"image": <noise>})``.
        """
        return example_of(self.inputs, batch_size, seed=seed)


def given_tensors(names: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a call by the names of an artifact's inputs, whether or not these are all of them.

    Arrays of NumPy are tensors too; what is neither is left out.

    Example:
        >>> given_tensors(["x", "y"], (np.zeros(1),), {"x": torch.ones(1)})
        {'x': tensor([1.]), 'y': tensor([0.], dtype=torch.float64)}
    """
    feeds = {name: _tensor_of(leaf) for name, leaf in named_leaves(kwargs).items()}
    free = (name for name in names if name not in feeds)
    for leaf in pytree.tree_leaves(args):
        if (tensor := _tensor_of(leaf)) is not None:
            feeds[next(free, f"positional input {len(feeds)}")] = tensor
    return {name: tensor for name, tensor in feeds.items() if tensor is not None}


def _tensor_of(leaf: Any) -> Tensor | None:
    if isinstance(leaf, np.ndarray):
        return torch.from_numpy(leaf if leaf.flags.writeable else leaf.copy())
    return leaf if isinstance(leaf, Tensor) else None


def named_feeds(
    names: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any], *, source: Path
) -> dict[str, Tensor]:
    """Return the tensors of a call by the names of an artifact's inputs: keywords by name, positional ones in order.

    Raises:
        InputError: an input is missing, or is not one of the artifact's.
    """
    feeds = given_tensors(names, args, kwargs)
    missing, extra = sorted(set(names) - set(feeds)), sorted(set(feeds) - set(names))
    if missing or extra:
        raise InputError(
            f"{source} takes the inputs {', '.join(names)}; missing {', '.join(missing) or 'none'}, unexpected "
            f"{', '.join(extra) or 'none'}.",
            fix="",
        )
    return feeds


def example_of(inputs: Sequence[TensorSpec], batch_size: int, *, seed: int = 0) -> Call:
    """Make a call from input shapes alone: normal noise, and zeros for integers.

    Free sizes other than the batch are those that the model was captured with, or else 16.

    Example:
        >>> example_of([TensorSpec("x", (None, 3), torch.float32)], 5).kwargs["x"].shape
        torch.Size([5, 3])
    """
    generator = torch.Generator().manual_seed(seed)

    def fill(spec: TensorSpec) -> Tensor:
        shape = example_shape(spec.shape, spec.example, batch_size, spec.batch_dim)
        if spec.dtype.is_floating_point:
            return torch.randn(shape, generator=generator).to(spec.dtype)
        return torch.zeros(shape, dtype=spec.dtype)

    return Call(kwargs={spec.name: fill(spec) for spec in inputs}, batch_dims=tuple(spec.batch_dim for spec in inputs))


def example_sizes(properties: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Return by input the sizes that, according to the file, the model was captured with.

    Example:
        >>> example_sizes({"l0compress.example": '{"x": [2, 3]}'})
        {'x': (2, 3)}
    """
    return {name: tuple(sizes) for name, sizes in json.loads(properties.get(EXAMPLE_KEY, "{}")).items()}


def _positive(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if 0 < value < math.inf else None


def _size(dim: Any) -> int | None:
    return dim if isinstance(dim, int) else None
