"""Einsum as what it is made of: permutations, one matrix product for two operands, reshapes.

requires: a flat graph with shapes on every node.
ensures:  every einsum of one or two operands, or of more taken from left to right, is gone, except where a letter
          repeats within an operand (a diagonal), which stays as it is.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from l0compress.graph.nodes.emit import Emitter
from l0compress.graph.nodes.network import op_name

aten = torch.ops.aten


def expand_einsums_(module: fx.GraphModule) -> None:
    """Replace each einsum by permutations, sums and matrix products."""
    for node in list(module.graph.nodes):
        if op_name(node) != "einsum":
            continue
        operands: Any = node.args[1]
        letters = spelled(str(node.args[0]), [operand.meta["val"].dim() for operand in operands])
        if letters is None:
            continue
        inputs, output = letters
        emit = Emitter(module.graph, node)
        result, have = operands[0], inputs[0]
        for position, (operand, theirs) in enumerate(zip(operands[1:], inputs[1:], strict=True), 2):
            wanted = set(output).union(*inputs[position:])
            result, have = _product(emit, (result, have), (operand, theirs), wanted)
        node.replace_all_uses_with(_arranged(emit, result, have, output))
        module.graph.erase_node(node)


def spelled(equation: str, ranks: Sequence[int]) -> tuple[list[str], str] | None:
    """The letters of each operand and of the result, ellipses written out; None where a letter repeats in one operand.

    Examples:
        >>> spelled("...ij,...jk", [3, 3])
        (['Aij', 'Ajk'], 'Aik')
        >>> spelled("ii->i", [2]) is None
        True
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    inputs = left.split(",")
    free = [letter for letter in string.ascii_uppercase if letter not in equation]
    spare = [rank - len(term.replace("...", "")) for term, rank in zip(inputs, ranks, strict=True)]
    widest = max([extra for term, extra in zip(inputs, spare, strict=True) if "..." in term], default=0)
    batch = "".join(free[:widest])
    inputs = [
        term.replace("...", batch[len(batch) - extra :] if extra else "")
        for term, extra in zip(inputs, spare, strict=True)
    ]
    if arrow:
        output = right.replace("...", batch)
    else:
        everything = "".join(inputs)
        output = batch + "".join(sorted(c for c in set(everything) - set(batch) if everything.count(c) == 1))
    repeated = any(len(set(term)) != len(term) for term in (*inputs, output))
    return None if repeated else (inputs, output)


Term = tuple[fx.Node, str]


def _product(emit: Emitter, left: Term, right: Term, wanted: set[str]) -> Term:
    """Two operands as one batched matrix product ``[batch, n, k] @ [batch, k, m]``, each part one dimension or none."""
    left, right = (_summed(emit, *term, wanted | set(other)) for term, other in ((left, right[1]), (right, left[1])))
    a, b = left[1], right[1]
    batch = [c for c in a if c in b and c in wanted]
    inner = [c for c in a if c in b and c not in wanted]
    rows, columns = [c for c in a if c not in b], [c for c in b if c not in a]
    if not inner:
        return _outer(emit, left, right, [*batch, *rows, *columns])
    first = _grouped(emit, left, batch, [rows, inner])
    second = _grouped(emit, right, batch, [inner, columns])
    product = emit(aten.matmul.default, first, second)
    sizes = [*_sizes(emit, left, [*batch, *rows]), *_sizes(emit, right, columns)]
    if len(rows) != 1 or len(columns) != 1:
        product = emit(aten.reshape.default, product, sizes)
    return product, "".join([*batch, *rows, *columns])


def _outer(emit: Emitter, left: Term, right: Term, letters: list[str]) -> Term:
    """Nothing is summed: an elementwise product."""
    parts = []
    for node, have in (left, right):
        value = _arranged(emit, node, have, "".join(c for c in letters if c in have))
        for position, letter in enumerate(letters):
            if letter not in have:
                value = emit(aten.unsqueeze.default, value, position)
        parts.append(value)
    return emit(aten.mul.Tensor, *parts), "".join(letters)


def _summed(emit: Emitter, node: fx.Node, have: str, wanted: set[str]) -> Term:
    alone = [position for position, letter in enumerate(have) if letter not in wanted]
    if not alone:
        return node, have
    return emit(aten.sum.dim_IntList, node, alone), "".join(letter for letter in have if letter in wanted)


def _arranged(emit: Emitter, node: fx.Node, have: str, output: str) -> fx.Node:
    """Letters that the result lacks are summed, the others permuted."""
    node, have = _summed(emit, node, have, set(output))
    if have == output:
        return node
    return emit(aten.permute.default, node, [have.index(letter) for letter in output])


def _grouped(emit: Emitter, term: Term, batch: list[str], parts: list[list[str]]) -> fx.Node:
    """The operand with its letters in order, each part folded into one dimension."""
    order = [*batch, *parts[0], *parts[1]]
    node = _arranged(emit, *term, "".join(order))
    if all(len(part) == 1 for part in parts):
        return node
    sizes: list[Any] = _sizes(emit, term, batch)
    for part in parts:
        sizes.append(_folded(emit, _sizes(emit, term, part)))
    return emit(aten.reshape.default, node, sizes)


def _folded(emit: Emitter, sizes: list[Any]) -> Any:
    total: Any = 1
    for size in sizes:
        both = isinstance(total, int) and isinstance(size, int)
        total = total * size if both else size if total == 1 else emit.number(total, size)
    return total


def _sizes(emit: Emitter, term: Term, letters: list[str]) -> list[Any]:
    """Sizes as numbers, or as nodes where they are free."""
    node, have = term
    found: list[Any] = []
    for letter in letters:
        size = node.meta["val"].shape[have.index(letter)]
        found.append(int(size) if is_concrete_int(size) else emit(aten.sym_size.int, node, have.index(letter)))
    return found
