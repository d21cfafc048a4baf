"""TorchScript archives: they contain code and pickles, so they are read only if trusted."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from l0compress.errors import NOTHING_LOADED, CaptureError, ModelError
from l0compress.loading.references import FOREIGN_ERRORS, first_line
from l0compress.loading.wrappers import traceable

WAY_OUT = (
    "Take its weights instead: torch.save(torch.jit.load(FILE).state_dict(), 'weights.pt'), with --factory "
    "package.module:function; or export the original module with torch.export.save."
)


def load_torchscript(path: Path, *, trust_pickle: bool) -> nn.Module:
    """Load a TorchScript archive as a script module, in evaluation mode.

    Raises:
        ModelError: it is not trusted, or cannot be read.
    """
    if not trust_pickle:
        raise ModelError(
            f"Model {str(path)!r} is a TorchScript archive, which runs code that is in the file.",
            fix=(
                "If you trust its author, pass --trust-pickle; safer is to export the original module with "
                "torch.export.save, or its state_dict() with --factory."
            ),
            assurance=NOTHING_LOADED,
        )
    try:
        with warnings.catch_warnings():
            # The deprecation warning is of no use to someone who has a file in this format.
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.load(str(path), map_location="cpu").eval()
    except FOREIGN_ERRORS as reason:
        raise ModelError(
            f"Cannot read model {str(path)!r} as a TorchScript archive ({first_line(reason)}).",
            fix="Save it again with torch.jit.save, or give weights one of their own suffixes, such as .pt.",
        ) from reason


def traced(module: torch.jit.ScriptModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> nn.Module:
    """Convert a script module to one of plain operators, which ``torch.export`` can capture.

    The converter is torch's own, the one that ``torch.export`` recommends for script modules.

    Raises:
        CaptureError: the converter lacks something that the script uses.
    """
    # Takes half a second to import, and few need it.
    from torch._export.converter import TS2EPConverter

    try:
        converted = traceable(TS2EPConverter(module, args, kwargs).convert().module(check_guards=False))
    except FOREIGN_ERRORS as reason:
        raise CaptureError(
            f"torch cannot convert the script ({first_line(reason)}).",
            fix="Give its weights, and the Python model by --factory, instead.",
        ) from reason
    parameters = dict(module.named_parameters())
    for name, parameter in parameters.items():
        _restore_parameter_(converted, name, parameter)
    return converted


def _restore_parameter_(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    # Frozen archives lose the difference between parameters and buffers; the converter treats both as buffers.
    path, _, last = name.rpartition(".")
    try:
        owner = module.get_submodule(path)
    except AttributeError:
        return
    if last in owner._buffers:
        del owner._buffers[last]
        owner.register_parameter(last, nn.Parameter(parameter.detach().clone()))
