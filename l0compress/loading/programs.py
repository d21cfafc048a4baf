"""Vet the graph inside a ``.pt2`` archive, as JSON: everything that torch would look up, evaluate or print as code.

torch resolves operators by walking attributes of the ``torch`` module, evaluates symbolic sizes and guards as Python,
imports what containers name, and writes the names of values into Python source that it then runs. So every string in
the JSON is limited to what honest programs contain. Seen in torch 2.13: ``torch/_export/serde/serialize.py``,
``torch/export/_unlift.py``, ``torch/utils/_pytree.py``, ``torch/fx/graph.py``. For each check here there is a file that
does harm without it (``tests/hostile_programs.py``).
"""

from __future__ import annotations

import json
import keyword
import math
import operator
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch._export.serde.serialize import _SYM_OPS  # functions of symbolic sizes
from torch._ops import OpOverload

from l0compress.loading.expressions import is_arithmetic

LARGEST_TENSOR = 2**31
# Regions, branches and loops of the model itself; the others hold compiled code, callbacks or objects.
REGIONS = frozenset(
    {
        "associative_scan", "cond", "flex_attention", "invoke_subgraph", "map_impl", "scan",
        "tag_activation_checkpoint",
        "while_loop", "wrap", "wrap_activation_checkpoint", "wrap_with_autocast", "wrap_with_set_grad_enabled",
    }
)  # fmt: skip
# Operators that are not functions of their arguments: they read files, talk to other processes, or keep time.
FORBIDDEN_NAMESPACES = frozenset(
    {"c10d", "c10d_functional", "_c10d_functional", "_c10d_functional_autograd", "debugprims", "debug_mode_ops",
     "inductor", "_test", "inductor_prims", "profiler", "rngprims", "static_runtime", "symm_mem", "_dtensor", "prim",
     "rpc", "mkldnn_prepacked"}
)  # fmt: skip
FORBIDDEN_OPERATORS = frozenset({"aten.from_file"})
NAME_KEYS = frozenset({"name", "as_name"})
_OPERATOR = re.compile(r"torch\.ops\.([A-Za-z]\w*|_\w+)\.(\w+)\.(\w+)")
_REGION = re.compile(r"torch\.ops\.higher_order\.(\w+)")
_FUNCTION = re.compile(r"(_operator|math|torch)\.(\w+)")
_MODULES = {"_operator": operator, "math": math, "torch": torch}
_PLAIN_TEXT = re.compile(r"[^\"'\\`\x00-\x1f\x7f]*")

# How a device is written, and where.
_CPU = {"type": "cpu", "index": None}
_DEVICES = ("device", "as_device")


def fault_of_program(program: Any) -> str | None:
    """Return what in the JSON of a program could run code, or None.

    Example:
        >>> fault_of_program({"target": "torch.ops.aten.relu.default", "name": "relu"})
        >>> fault_of_program({"target": "torch.os.system"})
        "the operator 'torch.os.system'"
        >>> fault_of_program({"name": "x=print(1)"})
        "the name 'x=print(1)'"
    """
    return next(_faults(program, ""), None)


def without_notes(program: Any) -> Any:
    """Return the same program without guards and source annotations, except the lines that it was made from."""
    if isinstance(program, dict):
        kept = {key: without_notes(value) for key, value in program.items() if key not in ("metadata", "guards_code")}
        if "metadata" in program:
            trace = program["metadata"].get("stack_trace") if isinstance(program["metadata"], dict) else None
            kept["metadata"] = {"stack_trace": trace} if isinstance(trace, str) else {}
        if "guards_code" in program:
            kept["guards_code"] = []
        return kept
    return [without_notes(item) for item in program] if isinstance(program, list) else program


def on_cpu(program: Any) -> Any:
    """Return the same program, or table of weights, with everything on the CPU, whatever device it was made on.

    >>> on_cpu({"tensor_meta": {"device": {"type": "cuda", "index": 0}, "layout": 7}})
    {'tensor_meta': {'device': {'type': 'cpu', 'index': None}, 'layout': 7}}
    """
    if isinstance(program, dict):
        return {
            key: dict(_CPU)
            if key in _DEVICES and isinstance(value, dict) and value.keys() == _CPU.keys()
            else on_cpu(value)
            for key, value in program.items()
        }
    return [on_cpu(item) for item in program] if isinstance(program, list) else program


def _faults(value: Any, key: str) -> Iterator[str]:
    if isinstance(value, dict):
        for name, item in value.items():
            if not _PLAIN_TEXT.fullmatch(name) or name.startswith("__"):
                yield f"the key {name[:60]!r}"
            if name != "stack_trace":
                yield from _faults(item, name)
        if isinstance(value.get("sizes"), list):
            yield from _size_faults([size.get("as_int") for size in value["sizes"] if isinstance(size, dict)])
        if value.get("name") == "size" and isinstance(value.get("arg"), dict):
            yield from _size_faults(value["arg"].get("as_ints") or [])
    elif isinstance(value, list):
        for item in value:
            yield from _faults(item, key)
    elif isinstance(value, str):
        yield from _text_faults(value, key)


def _text_faults(text: str, key: str) -> Iterator[str]:
    if key in ("target", "as_operator"):
        if not is_safe_operator(text):
            yield f"the operator {text[:60]!r}"
    elif key == "expr_str":
        if not is_arithmetic(text):
            yield f"the size {text[:60]!r}"
    elif key in NAME_KEYS:
        if text and not (text.isidentifier() and not keyword.iskeyword(text) and not text.startswith("__")):
            yield f"the name {text[:60]!r}"
    elif text[:1] in ("[", "{"):
        yield from _nested_faults(text)
    elif not _PLAIN_TEXT.fullmatch(text) or any(part.startswith("__") for part in text.split(".")):
        yield f"the text {text[:60]!r}"


def _nested_faults(text: str) -> Iterator[str]:
    """Yield faults of a description of nested containers: JSON within the JSON, whose contexts are JSON again."""
    try:
        stack = [json.loads(text)]
    except (ValueError, RecursionError):
        yield f"the text {text[:60]!r}"
        return
    while stack:
        part = stack.pop()
        if isinstance(part, dict):
            if "__enum__" in part or part.get("type") == "collections.defaultdict":
                yield "a container that imports what it names"
            stack += [*part.keys(), *part.values()]
        elif isinstance(part, list):
            stack += part
        elif isinstance(part, str) and not _PLAIN_TEXT.fullmatch(part):
            yield from _nested_faults(part) if part != text else [f"the text {part[:60]!r}"]


def _size_faults(sizes: list[Any]) -> Iterator[str]:
    known = [size for size in sizes if isinstance(size, int)]
    if math.prod(abs(size) for size in known) > LARGEST_TENSOR:
        yield f"a size of {' x '.join(map(str, known))[:80]}"


def is_safe_operator(target: str) -> bool:
    """Return whether an operator name is that of a pure function of its arguments, known to this process.

    Example:
        >>> is_safe_operator("torch.ops.aten.add.Tensor"), is_safe_operator("_operator.mul")
        (True, True)
        >>> is_safe_operator("torch.ops.aten.from_file.default"), is_safe_operator("torch.hub.load")
        (False, False)
    """
    region = _REGION.fullmatch(target)
    if region is not None:
        return region[1] in REGIONS
    function = _FUNCTION.fullmatch(target)
    if function is not None:
        named = getattr(_MODULES[function[1]], function[2], None)
        return any(named is known for known in _SYM_OPS)
    match = _OPERATOR.fullmatch(target)
    if match is None or match[1] in FORBIDDEN_NAMESPACES or f"{match[1]}.{match[2]}" in FORBIDDEN_OPERATORS:
        return False
    try:
        return isinstance(operator.attrgetter(".".join(match.groups()))(torch.ops), OpOverload)
    except (AttributeError, RuntimeError):
        return False
