"""A bundle with the interface of a module: tensors in, named tensors out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from l0compress.export.huggingface.session import FolderSession
from l0compress.export.session import OnnxSession, TensorSpec, example_of, named_feeds
from l0compress.verification.calls import Call
from l0compress_runtime import Bundle, load
from l0compress_runtime.manifest import MANIFEST
from l0compress_runtime.tuning import batch_dim_of

SUFFIX = ".l0c"

# Relative to the largest output. Weights that are rounded for storage cannot agree more closely than that.
TOLERANCES = {"float32": None, "float16": 5e-3, "bfloat16": 4e-2, "int8": 5e-2}


def is_bundle(path: Path) -> bool:
    """Return whether a path is meant as a bundle: a file by its suffix, a folder by its manifest."""
    return path.suffix == SUFFIX or (path.is_dir() and (path / MANIFEST).exists())


class BundleSession:
    """A bundle that is called like the model it was exported from; see :class:`l0compress.export.session.OnnxSession`.

    Args:
        path: the bundle, a file or a folder.
        threads: threads that a call uses.
        engine: run every sparse layer on this engine.
        tune: time every layer again on this machine.

    Raises:
        RunError: the path is not a bundle, or a damaged one.
    """

    def __init__(
        self, path: str | Path, *, threads: int | None = None, engine: str | None = None, tune: bool = False
    ) -> None:
        self.path = Path(path)
        self.bundle: Bundle = load(self.path, threads=threads, engine=engine, tune=tune)
        self.output_names = tuple(port.name for port in self.bundle.outputs)
        self.inputs = tuple(
            TensorSpec(
                port.name,
                tuple(size if isinstance(size, int) else None for size in port.shape),
                getattr(torch, port.dtype),
                port.example,
                batch_dim_of(port.shape),
            )
            for port in self.bundle.inputs
        )

    @property
    def tolerance(self) -> float | None:
        """What :func:`l0compress.verify` may allow: more than usual where weights are rounded for storage."""
        return TOLERANCES.get(self.bundle.manifest.about.get("storage", "float32"))

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Run the model; return outputs by name.

        Raises:
            InputError: an input is missing, is not one of the model's, or has a shape or dtype that it does not accept.
        """
        outputs = self.bundle.run(self.feeds(Call(args, kwargs)))
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in outputs.items()}

    def feeds(self, call: Call) -> dict[str, NDArray[Any]]:
        """Return the arrays of a call by input name.

        Raises:
            InputError: an input is missing, or is not one of the model's.
        """
        names = [spec.name for spec in self.inputs]
        tensors = named_feeds(names, call.args, call.kwargs, source=self.path)
        return {name: tensor.numpy(force=True) for name, tensor in tensors.items()}

    def bound(self, call: Call) -> Callable[[], Any]:
        """Return a function that runs one call with its inputs already converted: what a timing repeats."""
        feeds = self.feeds(call)
        return lambda: self.bundle.run(feeds)

    def example_call(self, batch_size: int = 2, *, seed: int = 0) -> Call:
        """Make a call from the input shapes alone."""
        return example_of(self.inputs, batch_size, seed=seed)


# Artifacts that ONNX Runtime, sparse kernels and transformers run; a .pt2 file is a graph instead.
Session: TypeAlias = OnnxSession | BundleSession | FolderSession
