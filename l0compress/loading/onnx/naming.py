"""Names of a file as Python names, and the module that holds parameters and buffers under them."""

from __future__ import annotations

import keyword
import re

from torch import Tensor, nn

_TAKEN = frozenset(dir(nn.Module())) | {"self"}


def identifier(name: str) -> str:
    """Return a valid Python name as close as possible to the given one.

    Examples:
        >>> identifier("input.1"), identifier("class"), identifier("0"), identifier("")
        ('input_1', 'class_', '_0', '_')
    """
    plain = re.sub(r"[^0-9A-Za-z_]", "_", name)
    if not plain or plain[0].isdigit():
        plain = f"_{plain}"
    return f"{plain}_" if keyword.iskeyword(plain) or plain in _TAKEN else plain


def path_of(name: str) -> str:
    """Return a dotted name, like those of parameters within modules.

    Examples:
        >>> path_of("layer.0.weight"), path_of("onnx::MatMul_12"), path_of("forward..bias")
        ('layer.0.weight', 'onnx__MatMul_12', 'forward_.bias')
    """
    parts = [re.sub(r"[^0-9A-Za-z_]", "_", part) for part in name.split(".")]
    parts = [f"{part}_" if keyword.iskeyword(part) or part in _TAKEN else part for part in parts if part]
    return ".".join(parts) or "_"


class Attributes:
    """Parameters and buffers of a module under construction, each tensor of the file once."""

    def __init__(self) -> None:
        self.root = nn.Module()
        self._paths: dict[tuple[str, bool], str] = {}

    def add(self, name: str, tensor: Tensor, *, trained: bool, shared: bool = True) -> str:
        """Store a tensor under its name, or a similar one if that is taken; the same tensor is stored once.

        Args:
            name: in the file.
            tensor: the value.
            trained: whether it is a parameter rather than a buffer.
            shared: whether another use of the same name is the same tensor.

        Returns:
            The path of the parameter or buffer.
        """
        if shared and (name, trained) in self._paths:
            return self._paths[name, trained]
        path = path_of(name)
        if not self._is_free(path):
            path, number = path.replace(".", "_"), 1
            while not self._is_free(f"{path}_{number}"):
                number += 1
            path = f"{path}_{number}"
        parent, _, last = path.rpartition(".")
        owner = self.root
        for part in parent.split(".") if parent else ():
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        if trained:
            owner.register_parameter(last, nn.Parameter(tensor))
        else:
            owner.register_buffer(last, tensor)
        if shared:
            self._paths[name, trained] = path
        return path

    def _is_free(self, path: str) -> bool:
        owner, parts = self.root, path.split(".")
        for part in parts[:-1]:
            if part in owner._parameters or part in owner._buffers:
                return False
            if part not in owner._modules:
                return True
            owner = owner.get_submodule(part)
        return not any(parts[-1] in held for held in (owner._parameters, owner._buffers, owner._modules))
