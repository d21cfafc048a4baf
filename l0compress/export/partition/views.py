"""Nodes that only reshape a value."""

from __future__ import annotations

from math import prod

from onnx import TensorProto

from l0compress.export.partition.flow import Flow, attributes_of


def flattened_from(flow: Flow, index: int) -> int | None:
    """Return the dimension from which a node flattens its input, changing nothing else; None if it does not.

    Example:
        >>> from onnx import helper, TensorProto
        >>> from l0compress.export.partition.flow import flow_of
        >>> x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy")
        >>> graph = helper.make_graph([helper.make_node("Flatten", ["x"], ["y"], axis=1)], "g", [x], [y])
        >>> flattened_from(flow_of(helper.make_model(graph)), 0)
        1
    """
    node = flow.nodes[index]
    given = attributes_of(node)
    if node.op_type == "Flatten":
        return 1 if given.get("axis", 1) == 1 else None
    target = flow.constants.get(node.input[1]) if node.op_type == "Reshape" else None
    before = flow.shapes.get(node.input[0])
    if target is None or target.data_type != TensorProto.INT64 or before is None:
        return None
    sizes = flow.array(node.input[1]).tolist()
    # With this attribute a 0 is a size, and does not copy the input's.
    return None if given.get("allowzero", 0) and 0 in sizes else _last_dimensions(before, sizes)


def _last_dimensions(before: tuple[int | str | None, ...], target: list[int]) -> int | None:
    """Return where a shape is cut so that the rest is flattened; in a target -1 is the remainder, 0 the input's size.

    Example:
        >>> _last_dimensions(("batch", 1, 28, 28), [-1, 784]), _last_dimensions(("batch", 1, 28, 28), [0, -1])
        (1, 1)
        >>> _last_dimensions(("batch", 2, 3, 4), [-1, 12]), _last_dimensions(("batch", 6, 4), [-1, 2, 12])
        (None, None)
    """
    kept = len(target) - 1
    if not 0 < kept < len(before):
        return None
    rest = [size for size in before[kept:] if isinstance(size, int)]
    size = prod(rest) if len(rest) == len(before) - kept else None
    unknown = [dim for dim in range(kept) if not (target[dim] == 0 or target[dim] == before[dim])]
    if target[-1] == -1:
        return None if unknown else kept
    # The remainder equals the input's size if all the others do.
    is_left = [target[dim] for dim in unknown] in ([], [-1])
    return kept if is_left and size is not None and target[-1] == size else None
