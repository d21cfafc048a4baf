"""Capture: a PyTorch model becomes one flat graph of aten operators, on which everything else happens.

requires: a module and example inputs, or an exported program.
ensures:  a :class:`CapturedGraph` in eval mode with the model's own parameter names, a dynamic batch, no submodule
          calls and no dead code.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from torch.fx.node import map_aggregate
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from l0compress.errors import CaptureError, InputError, L0Error
from l0compress.graph.cells import open_cells_
from l0compress.graph.describe import headed, input_texts, size_text
from l0compress.graph.dynamic import Dynamic, batch_of, by_graph_name, check_dynamic, doubled, dynamic_shapes_of
from l0compress.graph.einsum import expand_einsums_
from l0compress.graph.folding import fold_parametrisations_
from l0compress.graph.functional import functionalise_
from l0compress.graph.history import check_repeatable, without_history
from l0compress.graph.inline import drop_checks_, inline_regions_
from l0compress.graph.network import GraphNetwork, delete_unused_, network_of
from l0compress.graph.pickling import inputs_of, put_inputs_
from l0compress.graph.placement import apart, bring_here_
from l0compress.graph.recurrent import any_length, by_layer_
from l0compress.graph.state_writes import detach_state_, drop_state_writes_, written_state
from l0compress.graph.training_mode import attention_dropout, note_attention_dropout_

# torch.export raises whatever the model's own code raises, so the boundary to user code catches all of it.
USER_CODE_ERRORS = (Exception,)

# How torch speaks of attributes that the model sets or writes in its forward.
_OF_STATE = (
    r"The tensor attributes? .* during export",
    r"The \.grad attribute of a Tensor that is not a leaf",
    r"A model attribute `.*` requires gradient",
)


@dataclass(frozen=True, eq=False)
class CapturedGraph:
    """A model as one graph. Immutable: every stage returns a new one.

    It is on the CPU, wherever the model was; :meth:`module` is a network that ``.to(device)`` moves.

    Attributes:
        graph_module: aten operators over parameters and buffers under the user's names. Never mutated.
        example_args: positional example inputs, batch of at least 2.
        example_kwargs: keyword example inputs.
        dynamic_shapes: what ``torch.export.export`` needs to capture :meth:`module` again, by input name.
    """

    graph_module: fx.GraphModule
    example_args: tuple[Any, ...]
    example_kwargs: dict[str, Any]
    dynamic_shapes: dict[str, Any] | None

    def module(self) -> GraphNetwork:
        """A trainable copy, in eval mode; ``forward`` takes what the user's model takes."""
        return network_of(self.graph_module)

    def state(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, detached, not copied."""
        return {name: tensor.detach() for name, tensor in self.graph_module.state_dict().items()}

    def with_state(self, state: Mapping[str, Tensor]) -> CapturedGraph:
        """The same graph with other weights.

        Raises:
            KeyError: a parameter or buffer of the graph is missing in ``state``.
        """
        duplicate: fx.GraphModule = network_of(self.graph_module)
        with torch.no_grad():
            for name, tensor in duplicate.state_dict().items():
                tensor.copy_(state[name])
        return replace(self, graph_module=duplicate)

    def to(self, dtype: torch.dtype) -> CapturedGraph:
        """The same graph with floating-point weights and example inputs in ``dtype`` (float64 for exact checks)."""

        def cast(value: Any) -> Any:
            return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

        args, kwargs = pytree.tree_map(cast, (self.example_args, self.example_kwargs))
        duplicate = network_of(self.graph_module)
        own = {tensor.dtype for tensor in self.state().values() if tensor.is_floating_point()}
        for node in duplicate.graph.nodes:
            for old in own | {torch.float32}:
                retype_node_(node, dtype, old)
        duplicate.to(dtype)
        duplicate.recompile()
        return propagate_shapes(replace(self, graph_module=duplicate, example_args=args, example_kwargs=kwargs))

    @property
    def batch_size(self) -> int:
        """The leading size of the example inputs."""
        return batch_of(self.example_args, self.example_kwargs)

    def nodes(self) -> Iterator[fx.Node]:
        return iter(self.graph_module.graph.nodes)

    def __repr__(self) -> str:
        graph = self.graph_module.graph
        return headed(f"CapturedGraph({size_text(self.graph_module, graph)})", input_texts(graph))

    def __deepcopy__(self, memo: dict[int, Any]) -> CapturedGraph:
        args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (self.example_args, self.example_kwargs))
        duplicate = network_of(self.graph_module)
        return replace(self, graph_module=duplicate, example_args=args, example_kwargs=kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        fields = (self.example_args, self.example_kwargs, self.dynamic_shapes)
        return _unpickled, (network_of(self.graph_module), *inputs_of(self.graph_module.graph), fields)


def _unpickled(
    network: GraphNetwork, inputs: tuple[Any, ...], symbols: Mapping[Any, int], fields: Any
) -> CapturedGraph:
    put_inputs_(network.graph, inputs, symbols)
    return propagate_shapes(CapturedGraph(network, *fields))


def check_captured(graph: object, verb: str) -> None:
    """Raises:
    InputError: what is given to ``verb`` is no captured graph; the message says what to write.
    """
    if isinstance(graph, CapturedGraph):
        return
    raise InputError(
        f"{verb} takes a captured graph, and this is {type(graph).__name__}. Nothing was changed. Capture the model "
        "first: graph = l0compress.capture(model, (example_input,))."
    )


def retype_node_(node: fx.Node, dtype: torch.dtype, old: torch.dtype = torch.float32) -> None:
    """Casts and constructors that the capture wrote down as ``old`` follow the graph's new dtype."""

    def swap(value: Any) -> Any:
        return dtype if value is old else value

    node.args = map_aggregate(node.args, swap)
    node.kwargs = map_aggregate(node.kwargs, swap)
    value, schema = node.meta.get("val"), getattr(node.target, "_schema", None)
    if schema is None or not isinstance(value, Tensor) or value.dtype is not old:
        return
    reads = any(isinstance(source.meta.get("val"), Tensor) for source in node.all_input_nodes)
    if any(argument.name == "dtype" for argument in schema.arguments) and not reads:
        node.kwargs = {**node.kwargs, "dtype": dtype}


def capture(
    model: nn.Module | ExportedProgram,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic: Dynamic = "batch",
) -> CapturedGraph:
    """Capture ``model`` as a graph. The model itself is not changed.

    Args:
        model: a module, or what ``torch.export`` made of one (then its own example inputs and dynamic shapes serve).
        args: positional example inputs; a batch of one is doubled, since a size of 1 cannot be captured as dynamic.
        kwargs: keyword example inputs.
        dynamic: ``"batch"`` leaves dimension 0 of every tensor input free, ``"batch+sequence"`` dimension 1 of token
            inputs too; a mapping ``{input name: {dimension: torch.export.Dim}}`` says exactly which; None fixes all.

    Raises:
        CaptureError: torch.export cannot capture the model, or it fixes a dimension that should be free.

    Examples:
        >>> graph = capture(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), (torch.zeros(1, 4),))
        >>> sorted(graph.state())
        ['0.bias', '0.weight', '2.bias', '2.weight']
        >>> graph.module()(torch.zeros(5, 4)).shape
        torch.Size([5, 2])
    """
    if isinstance(model, ExportedProgram):
        return _from_program(model)
    if isinstance(args, Tensor):
        raise CaptureError("args is a tensor, and has to be a tuple of inputs. Nothing was changed. Pass (x,) for x.")
    args, kwargs = tuple(args), dict(kwargs or {})
    if dynamic is not None and batch_of(args, kwargs) == 1:
        args, kwargs = doubled(args, kwargs)
    shapes = dynamic_shapes_of(model, args, kwargs, dynamic)
    with without_history(model, args, kwargs) as state:
        module = _exported(model, args, kwargs, shapes)
        state.restore_()
        check_repeatable(model, args, kwargs, written_state(module))
        graph = _finish(module, args, kwargs, by_graph_name(model, shapes))
        note_attention_dropout_(graph.graph_module, lambda: attention_dropout(model, args, kwargs))
    return replace(graph, graph_module=network_of(graph.graph_module))


def _exported(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any) -> fx.GraphModule:
    try:
        with any_length(), warnings.catch_warnings():
            # What the model keeps from this call is put back, and whether it matters is looked at afterwards.
            for message in _OF_STATE:
                warnings.filterwarnings("ignore", message=message, category=UserWarning)
            program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
            return _flat_module(program, by_graph_name(model, shapes))
    except L0Error:
        raise
    except USER_CODE_ERRORS as error:
        raise CaptureError(_capture_message(model, error) + apart(model, args, kwargs)) from error


def _capture_message(model: nn.Module, error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    source = next((line for line in lines if line.startswith("File ") and "site-packages/torch" not in line), "")
    where = f" ({source})" if source else ""
    return (
        f"torch.export cannot capture {type(model).__name__}: {reason}{where}. Nothing was changed. Make the model's "
        "forward free of data-dependent Python control flow, or check that the example inputs have the shape, dtype "
        "and keywords that it expects."
    )


def _from_program(program: ExportedProgram) -> CapturedGraph:
    if program.example_inputs is None:
        raise CaptureError(
            "the exported program holds no example inputs. Nothing was changed. Export it again with torch.export.save "
            "from the program that torch.export.export returned."
        )
    args, kwargs = program.example_inputs
    named = [spec.arg.name for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
    vals = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    leaf_shapes = [
        {d: Dim.AUTO for d, size in enumerate(vals[name].shape) if not is_concrete_int(size)} or None
        if isinstance(vals[name], Tensor)
        else None
        for name in named
    ]
    spec = program.call_spec.in_spec
    if spec is None:
        raise CaptureError("the exported program does not say how its inputs are packed; export it again.")
    args_shapes, kwargs_shapes = pytree.tree_unflatten(leaf_shapes, spec)
    module = program.module()
    codegen: Any = module.graph._codegen
    names = list(codegen.pytree_info.orig_args)
    shapes = dict(zip(names, [*args_shapes, *kwargs_shapes.values()], strict=False))
    flat = _flat_module(program, shapes)
    check_repeatable(network_of(flat), args, kwargs, written_state(flat))
    return _finish(flat, tuple(args), dict(kwargs), shapes)


def _flat_module(program: ExportedProgram, shapes: Any) -> fx.GraphModule:
    module = program.module()
    if not isinstance(module, fx.GraphModule):
        raise CaptureError(f"torch.export returned a {type(module).__name__}, not a graph. Nothing was changed.")
    check_dynamic(module, shapes)
    inline_regions_(module)
    drop_checks_(module)
    detach_state_(module)
    return module


def _finish(module: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any) -> CapturedGraph:
    drop_state_writes_(module)
    functionalise_(module)
    expand_einsums_(module)
    fold_parametrisations_(module)
    shapeless = any([open_cells_(module), by_layer_(module)])
    module.graph.eliminate_dead_code()
    delete_unused_(module)
    module.recompile()
    args, kwargs = pytree.tree_map_only(Tensor, _owned, (args, kwargs))
    network = network_of(module)
    elsewhere = bring_here_(network, args, kwargs)
    args, kwargs = pytree.tree_map_only(Tensor, torch.Tensor.cpu, (args, kwargs))
    graph = CapturedGraph(network, args, kwargs, shapes)
    return propagate_shapes(graph) if shapeless or elsewhere else graph


def _owned(example: Tensor) -> Tensor:
    """A copy of an example input: saving a view would write the whole data set behind it into every file."""
    return example.detach().clone()


def propagate_shapes(graph: CapturedGraph) -> CapturedGraph:
    """Recompute every node's shape after a rewrite, keeping dynamic dimensions dynamic."""
    module = graph.graph_module
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    leaves = pytree.tree_leaves((graph.example_args, graph.example_kwargs))
    values = [node.meta["val"] for node in placeholders]
    mode = next(value.fake_mode for value in values if isinstance(value, torch._subclasses.FakeTensor))
    with mode:
        inputs = [
            torch.empty(value.shape, dtype=leaf.dtype, device=leaf.device) if isinstance(value, Tensor) else value
            for value, leaf in zip(values, leaves, strict=True)
        ]
    # Without the Python dispatcher some operators ask symbolic tensors for concrete sizes.
    with torch.no_grad(), enable_python_dispatcher(), any_length():
        FakeTensorProp(module, mode).propagate_dont_convert_inputs(*inputs)
    return graph
