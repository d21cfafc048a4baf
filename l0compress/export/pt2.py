"""Export to ``.pt2``: the archive of ``torch.export``, which any PyTorch loads without the code of the model.

requires: a captured graph.
ensures:  the archive, loaded again, computes what the reference computes; it contains no stack traces or paths; the
          same graph gives the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx
from torch._dynamo.exc import UserError
from torch.export import ExportedProgram
from torch.fx.graph import _PyTreeCodeGen

from l0compress.errors import NOTHING_WRITTEN, ModelError, RunError, SurgeryError
from l0compress.export.files import Exported, size_on_disk, staged, write_new
from l0compress.export.ties import tie_sizes_
from l0compress.graph.capture import CapturedGraph, capture
from l0compress.graph.capture.batch import batch_dims_of_program
from l0compress.graph.capture.rnn_layers import any_length
from l0compress.graph.nodes.network import GraphNetwork
from l0compress.loading import load_pt2
from l0compress.loading.exported import BATCH_DIMS, batch_dims_file
from l0compress.verification.calls import Call, asked_dims, example_calls
from l0compress.verification.comparison import check_tolerance
from l0compress.verification.equality import Model, verify

SUFFIX = ".pt2"

# What an archive records of a node besides its operator: its tensors, and which of the user's modules it was in.
_TENSORS, _MODULES = ("val", "tensor_meta", "unbacked_bindings"), "nn_module_stack"
_ROOT = {"L__self__": ("", "torch.nn.Module")}


def export_pt2(
    graph: CapturedGraph,
    path: str | Path,
    *,
    reference: Model | None = None,
    tolerance: float | None = None,
    inputs: Sequence[Call] = (),
) -> Exported:
    """Write ``graph`` as a ``.pt2`` archive, if the archive loaded again computes what the reference computes.

    The archive includes the graph's example inputs, so that it can be checked and timed by itself. Output classes, such
    as the ``ModelOutput`` of Hugging Face, become dicts with the same keys: the archive loads where they are unknown.

    Args:
        graph: the model; dimensions that are free in it stay free.
        path: the file to write; its name ends in ``.pt2``.
        reference: what the archive must agree with; by default the graph itself.
        tolerance: as in :func:`l0compress.verify`.
        inputs: more calls to check the archive on, such as a batch of one's own data.

    Raises:
        NotEqualError: the archive does not compute what the reference computes.
        SurgeryError: ``torch.export`` cannot capture the graph again.
        RunError: the path cannot be written to, or does not end in ``.pt2``.

    Example:
        >>> import tempfile, l0compress as l0
        >>> graph = l0.capture(torch.nn.Linear(4, 2), (torch.randn(2, 4),))
        >>> exported = export_pt2(graph, Path(tempfile.mkdtemp(), "model.pt2"))
        >>> torch.export.load(exported.path).module()(torch.zeros(3, 4)).shape
        torch.Size([3, 2])
    """
    check_tolerance(tolerance)
    destination = Path(path)
    if destination.suffix != SUFFIX:
        raise RunError(
            f"{destination} does not end in {SUFFIX}, which torch.export expects.",
            fix=f"Name it {destination.with_suffix(SUFFIX).name}.",
            assurance=NOTHING_WRITTEN,
        )
    calls = (*example_calls(graph), *inputs)
    with staged(destination) as staging:
        # Torch's own writer kills the process if the disk is full, and names the archive's folder after the file.
        content = io.BytesIO()
        program = exported_program(graph)
        torch.export.save(program, content, extra_files=batch_dims_file(program))
        write_new(staging, content.getbuffer(), for_=destination)
        reloaded = torch.export.load(staging).module()
        # A loaded program has no training mode, although its flag says otherwise: pass the function, not the module.
        try:
            equality = verify(reloaded.forward, reference or graph, inputs=calls, tolerance=tolerance)
        except AssertionError as guard:
            raise SurgeryError(
                f"the archive does not accept all sizes that the graph accepts: {str(guard).splitlines()[0]}.",
                fix=(
                    "Capture the model with fewer free sizes (dynamic='batch', on the command line --fixed), or "
                    "export it as onnx."
                ),
            ) from guard
        size_bytes = size_on_disk(staging)
    return Exported(destination, size_bytes, equality)


def captured_pt2(path: Path) -> CapturedGraph:
    """Load a ``.pt2`` archive as a captured graph, with its own example inputs.

    Raises:
        RunError: the file is missing or unreadable.
    """
    return capture(program_pt2(path))


def program_pt2(path: Path) -> ExportedProgram:
    """Load a ``.pt2`` archive as it is, before it is captured.

    Raises:
        RunError: the file is missing or unreadable.
    """
    try:
        return load_pt2(path)
    except ModelError as reason:
        raise RunError(str(reason)) from reason


def exported_program(graph: CapturedGraph) -> ExportedProgram:
    """Export the graph with ``torch.export``, with the user's parameter names, keywords and free dimensions.

    Raises:
        SurgeryError: the graph's code fixes a dimension that was free, or uses what ``torch.export`` cannot capture.

    Example:
        >>> import l0compress as l0
        >>> graph = l0.capture(torch.nn.Linear(4, 2), (torch.randn(2, 4),))
        >>> sorted(exported_program(graph).state_dict)
        ['bias', 'weight']
    """
    _, spec = pytree.tree_flatten((graph.example_args, graph.example_kwargs))
    args_shapes, kwargs_shapes = pytree.tree_unflatten(asked_dims(graph), spec)
    network = _with_plain_outputs(graph)
    try:
        with any_length():
            program = torch.export.export(
                network,
                graph.example_args,
                graph.example_kwargs,
                dynamic_shapes=(*args_shapes, *kwargs_shapes.values()),
                strict=False,
            )
    except (UserError, RuntimeError, ValueError) as error:
        raise SurgeryError(
            f"torch.export cannot capture the graph again: {str(error).splitlines()[0]}", fix="Export it as onnx."
        ) from error
    if batch_dims_of_program(program) != graph.batch_dims:
        program.graph_module.meta[BATCH_DIMS] = graph.batch_dims
    _keep_own_notes_(program, network)
    return program


def _keep_own_notes_(program: ExportedProgram, network: GraphNetwork) -> None:
    """Keep only those annotations on nodes that ``network`` itself has.

    What tracing adds depends on the process: source lines and paths, addresses in memory, active annotations, which
    differ once ``torch.compile`` has run, and the tracer's own modules around nodes that are in none.
    """
    known = {module for node in network.graph.nodes for module in node.meta.get(_MODULES, {}).values()}
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, fx.GraphModule) else ():
            notes = {note: node.meta[note] for note in _TENSORS if note in node.meta}
            if node.op not in ("placeholder", "output"):
                stack = node.meta.get(_MODULES, {})
                notes[_MODULES] = {key: module for key, module in stack.items() if module in known} or dict(_ROOT)
            node.meta = notes


def _with_plain_outputs(graph: CapturedGraph) -> GraphNetwork:
    """Return the graph's network with dicts, lists and tuples in place of output classes that a reader may lack."""
    network = graph.module()
    tie_sizes_(network, graph)
    with torch.no_grad():
        outputs = network(*graph.example_args, **graph.example_kwargs)
    codegen = network.graph._codegen
    if isinstance(codegen, _PyTreeCodeGen):
        codegen.pytree_info = codegen.pytree_info._replace(out_spec=pytree.tree_structure(_plain(outputs)))
        network.recompile()
    return network


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    return value if pytree.tree_is_leaf(value) else tuple(pytree.tree_leaves(value))
