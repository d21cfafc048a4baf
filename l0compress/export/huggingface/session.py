"""A folder of ``transformers`` with the interface of an artifact: it is verified and timed like one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from l0compress.errors import NOTHING_RUN, InputError
from l0compress.export.past import IDS
from l0compress.export.session import TensorSpec, example_of
from l0compress.loading.huggingface import CONFIG, load_folder, transformer_folder
from l0compress.verification.calls import Call

PIXELS = "pixel_values"


def is_model_folder(path: Path) -> bool:
    """Whether a path is a folder of transformers: one with a ``config.json``.

    >>> is_model_folder(Path("no such folder"))
    False
    """
    return path.is_dir() and (path / transformer_folder(path) / CONFIG).is_file()


class FolderSession:
    """The model of a folder, in PyTorch, called like the model that was captured. The folder's own code is never run.

    Args:
        path: the folder.

    Attributes:
        model: in eval mode and float32, without a cache between calls.

    Raises:
        ModelError: the folder is damaged, or its architecture is none of transformers.
    """

    tolerance: float | None = None

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.model: nn.Module = load_folder(self.path)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; return what it returns."""
        with torch.no_grad():
            return self.model(*args, **kwargs)

    def bound(self, call: Call) -> Callable[[], Any]:
        """Return a function that runs one call: what a timing repeats."""
        return lambda: self(*call.args, **call.kwargs)

    def example_call(self, batch_size: int = 2, *, seed: int = 0) -> Call:
        """Make a call from the configuration alone: 16 tokens, or an image of its size.

        Raises:
            InputError: the model takes something else.
        """
        config: Any = getattr(self.model, "config", None)
        main = getattr(self.model, "main_input_name", None)
        if main == IDS:
            return example_of([TensorSpec(IDS, (None, None), torch.long)], batch_size, seed=seed)
        side, channels = getattr(config, "image_size", None), getattr(config, "num_channels", 3)
        if main == PIXELS and isinstance(side, int):
            return example_of([TensorSpec(PIXELS, (None, channels, side, side), torch.float32)], batch_size, seed=seed)
        raise InputError(
            f"{str(self.path)!r} does not say what its input {main!r} looks like.",
            fix="Name the run that it was exported from: --against RUN.",
            assurance=NOTHING_RUN,
        )
