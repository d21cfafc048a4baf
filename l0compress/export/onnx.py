"""Export to ONNX: converted, checked, run by ONNX Runtime and verified equal before the file gets its name.

requires: a captured graph in a dtype that ONNX Runtime has kernels for (float32).
ensures:  inputs have the names of the model's arguments, outputs those of its dict keys or ``output_<position>``; the
          file contains no stack traces, source lines or paths; the same graph gives the same bytes.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
import torch.utils._pytree as pytree
from onnx.checker import ValidationError
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, NameFixPass
from torch import Tensor
from torch._dynamo.exc import UserError
from torch.onnx import OnnxExporterError, ONNXProgram

from l0compress.errors import RunError, SurgeryError
from l0compress.export.attention_translation import ATTENTION
from l0compress.export.experts import expert_translations
from l0compress.export.files import Exported, size_on_disk, staged
from l0compress.export.flat_network import FlatNetwork
from l0compress.export.known_operators import known_operators
from l0compress.export.onnx_settings import OnnxSettings, check_opset
from l0compress.export.origins import note_origins_
from l0compress.export.recurrent_translation import TRANSLATIONS, check_translatable
from l0compress.export.reshaping import simplify_shapes_
from l0compress.export.session import EXAMPLE_KEY, OUTPUT_NAMES_KEY, OnnxSession
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.capture.batch import leaves_of
from l0compress.graph.capture.rnn_layers import any_length
from l0compress.graph.groups.cost import cost
from l0compress.progress import Stages
from l0compress.verification.calls import Call, asked_dims, example_calls, named_leaves
from l0compress.verification.comparison import check_tolerance
from l0compress.verification.equality import Model, verify
from l0compress_runtime.sessions import first_line


def export_onnx(
    graph: CapturedGraph,
    path: str | Path,
    *,
    reference: Model | None = None,
    tolerance: float | None = None,
    inputs: Sequence[Call] = (),
    settings: OnnxSettings | None = None,
) -> Exported:
    """Write ``graph`` as an ONNX file, if ONNX Runtime computes with it what the reference computes.

    The check runs on the graph's example inputs, on inputs drawn from them at batch sizes 1 and 11, and on ``inputs``.

    Args:
        graph: the model; dimensions that are free in it stay free.
        path: the file to write. Weights that do not fit into it go to ``<path>.data`` beside it.
        reference: what the file must agree with; by default the graph itself.
        tolerance: as in :func:`l0compress.verify`.
        inputs: more calls to check the file on, such as a batch of one's own data.
        settings: the version of the operators, and how large the file may be.

    Raises:
        NotEqualError: the file does not compute what the reference computes.
        SurgeryError: the graph cannot be converted to ONNX or to the version of its operators, or ONNX Runtime cannot
            run the result.
        RunError: the path cannot be written to.

    Source: ``torch.onnx.export(dynamo=True)``.

    Example:
        >>> import tempfile, l0compress as l0
        >>> graph = l0.capture(torch.nn.Linear(4, 2), (torch.randn(2, 4),))
        >>> exported = export_onnx(graph, Path(tempfile.mkdtemp(), "model.onnx"))
        >>> exported.path.name, exported.equality.batch_sizes
        ('model.onnx', (2, 1, 11))
    """
    check_tolerance(tolerance)
    destination = Path(path)
    calls = (*example_calls(graph), *inputs)
    with staged(destination) as staging:
        stages = Stages([3, 1])
        with stages.stage("converting"):
            write_onnx(graph, staging, settings=settings)
        with stages.stage("checking"):
            equality = verify(checked_session(staging), reference or graph, inputs=calls, tolerance=tolerance)
        size_bytes = size_on_disk(staging)
    return Exported(destination, size_bytes, equality)


def write_onnx(
    graph: CapturedGraph, path: Path, *, settings: OnnxSettings | None = None, names: Mapping[str, str] | None = None
) -> None:
    """Write ``graph`` as an ONNX file without checking what it computes: for a file that is only timed.

    ``names`` are other names for inputs, outputs and free sizes, by those that they would have.

    Raises:
        SurgeryError: the graph cannot be converted to ONNX.
    """
    settings = OnnxSettings() if settings is None else settings
    program = _converted(graph, settings.opset)
    _annotate_(program, graph, names or {})
    large = _weight_bytes(program.model) > settings.largest_file_bytes
    ir.save(program.model, path, external_data=path.name + ".data" if large else None)


def _converted(graph: CapturedGraph, opset: int | None) -> ONNXProgram:
    check_translatable(graph)
    network, table = FlatNetwork(graph).eval(), {**TRANSLATIONS, **ATTENTION, **expert_translations(graph)}
    leaves = pytree.tree_leaves((graph.example_args, graph.example_kwargs))
    tensors = tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))
    dims = [asked for leaf, asked in zip(leaves, asked_dims(graph), strict=True) if isinstance(leaf, Tensor)]
    try:
        with _quiet(), any_length(), known_operators():
            program = torch.export.export(network, tensors, dynamic_shapes=(tuple(dims),), strict=False)
            converted = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                optimize=True,
                custom_translation_table=table,
                opset_version=opset,
            )
    except (OnnxExporterError, UserError, RuntimeError, ValueError) as error:
        raise SurgeryError(
            f"the graph cannot be converted to ONNX: {_root_cause(error)}.",
            fix="Export it as pt2, or replace the operation in the model.",
        ) from error
    if converted is None:
        raise SurgeryError("torch.onnx returned no program.", fix="Export the graph as pt2.")
    check_opset(converted.model, opset)
    simplify_shapes_(converted.model)
    return converted


def checked_session(path: Path) -> OnnxSession:
    """Open a file that was just written.

    Raises:
        SurgeryError: it is not valid, or ONNX Runtime cannot run it.
    """
    try:
        onnx.checker.check_model(path, full_check=True)
        return OnnxSession(path)
    except (ValidationError, onnx.shape_inference.InferenceError, RunError) as error:
        raise SurgeryError(
            f"ONNX Runtime cannot run the converted graph: {_root_cause(error)}.",
            fix="ONNX Runtime has most of its kernels only for float32: convert the model with .float() first.",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the converters, which log advice to their developers and copy objects of a deprecated torch class."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def _weight_bytes(model: ir.Model) -> int:
    values = (value.const_value for value in model.graph.initializers.values())
    return sum(value.nbytes for value in values if value is not None)


def _annotate_(program: ONNXProgram, graph: CapturedGraph, names: Mapping[str, str]) -> None:
    """Set the model's names and properties, and drop what the converter recorded about this machine."""
    model = program.model
    with torch.no_grad():
        example = named_leaves(graph.module()(*graph.example_args, **graph.example_kwargs))
    placeholders = [node for node in graph.nodes() if node.op == "placeholder"]
    inputs = [str(node.target) for node in placeholders if isinstance(node.meta.get("val"), Tensor)]
    input_names = [names.get(name, name) for name in inputs]
    output_names = [names.get(name, name) for name, value in example.items() if isinstance(value, Tensor)]
    leaves = leaves_of(graph.example_args, graph.example_kwargs)
    places = [place for leaf, place in zip(leaves, graph.batch_dims, strict=True) if isinstance(leaf, Tensor)]
    _strip_(model)
    program.rename_axes({symbol: names.get(name, name) for symbol, name in _axis_names(model, places).items()})
    _rename_(model, input_names, output_names)
    note_origins_(model, graph)
    total = cost(graph)
    shapes = [list(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor)]
    model.metadata_props.update(
        {
            "l0compress.version": version("l0compress"),
            "l0compress.params": str(total.params),
            "l0compress.macs": str(total.macs),
            OUTPUT_NAMES_KEY: json.dumps(output_names),
            EXAMPLE_KEY: json.dumps(dict(zip(input_names, shapes, strict=True))),
        }
    )


def _strip_(model: ir.Model) -> None:
    ClearMetadataAndDocStringPass()(model)
    model.graph.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for value in node.outputs:
            value.metadata_props.clear()


def _axis_names(model: ir.Model, places: Sequence[int | None]) -> dict[str | ir.SymbolicDim, str]:
    """Return names of free sizes: ``batch`` for the batch, ``length``, ``length_2`` and so on for the others."""
    names: dict[str | ir.SymbolicDim, str] = {}
    for value, place in zip(model.graph.inputs, places, strict=True):
        for dim, size in enumerate(value.shape or ()):
            symbol = size.value if isinstance(size, ir.SymbolicDim) else None
            if symbol is not None and symbol.isidentifier() and symbol not in names:
                base, taken = ("batch" if dim == place else "length"), set(names.values())
                names[symbol] = next(
                    name for name in (base, *(f"{base}_{k}" for k in range(2, 99))) if name not in taken
                )
    return names


def _rename_(model: ir.Model, input_names: list[str], output_names: list[str]) -> None:
    initializers = model.graph.initializers
    for value in list(initializers.values()):
        name = str(value.name).removeprefix("network.")
        if name not in initializers:
            value.name = name
        # A weight states its own shape. A second statement is wrong as soon as a tool such as ONNX Runtime's
        # quantizer transposes the weight.
        value.shape, value.type = None, None
    for value, name in zip(model.graph.inputs, input_names, strict=True):
        value.name = name
    for value, name in zip(model.graph.outputs, output_names, strict=True):
        value.name = name
    # Inputs keep their names, then outputs; anything else with one of these names is renamed.
    NameFixPass()(model)
