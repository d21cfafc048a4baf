"""Archives of ``torch.export.save``: vetted part by part, and repacked before torch sees them.

requires: the bytes of a file.
ensures:  torch reads an archive that holds the vetted parts and nothing else, so that two readers of one damaged or
          hostile zip cannot see two different things. Everything read is on the CPU, whatever device the archive was
          made on.
"""

from __future__ import annotations

import io
import json
import logging
import math
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.utils._pytree as pytree
from torch._export.verifier import SpecViolationError
from torch.export import ExportedProgram

from l0compress.errors import NOTHING_LOADED, ModelError
from l0compress.loading.containers import unknown_containers
from l0compress.loading.foreign_archives import FREE_BYTES, ForeignArchive, open_archive
from l0compress.loading.programs import fault_of_program, on_cpu, without_notes
from l0compress.loading.references import first_line
from l0compress.loading.weights import READ_ERRORS, load_tensors

PROGRAM = "models/model.json"
SAMPLE_INPUTS = "data/sample_inputs/model.pt"
# The key in the meta of a program's graph for the batch dimensions of its inputs, leaf by leaf, if they differ from
# the default; and the file of an archive that keeps them.
BATCH_DIMS, BATCH_DIMS_FILE = "l0compress.batch_dims", "batch_dims.json"
FORMAT_FILES = ("archive_format", "archive_version", "byteorder", ".data/version")
PAYLOADS = ("weights", "constants")
ROOT = "model"


def load_pt2(path: Path | str, *, trust_pickle: bool = False) -> ExportedProgram:
    """Load an archive of ``torch.export.save``; one with parts that could run code only if it is trusted.

    Raises:
        ModelError: the file is missing, unreadable, or has such parts and is not trusted.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        vetted = content if trust_pickle else _vetted(content, path)
        with _quiet_torch_export():
            program = torch.export.load(io.BytesIO(vetted))
            _check_calls(program)
        program.graph_module.meta.update(_batch_dims(content, path))
        return program
    except (*READ_ERRORS, SpecViolationError) as reason:
        raise ModelError(
            f"Cannot read model {str(path)!r} as an archive of torch.export.save ({first_line(reason)}).",
            fix="Export the model again, or copy the file again.",
        ) from reason


def batch_dims_file(program: ExportedProgram) -> dict[str, str]:
    """Return the extra file to save with a program whose batch dimensions differ from the default."""
    noted = program.graph_module.meta.get(BATCH_DIMS)
    return {} if noted is None else {BATCH_DIMS_FILE: json.dumps(noted)}


def _batch_dims(content: bytes, path: Path) -> dict[str, tuple[int | None, ...]]:
    archive = open_archive(content, f"model {str(path)!r} as an archive of torch.export.save", error=ModelError)
    name = next((name for name in archive.names() if name.partition("/")[2] == f"extra/{BATCH_DIMS_FILE}"), None)
    if name is None:
        return {}
    dims = json.loads(archive.read(name))
    if not isinstance(dims, list) or not all(dim is None or (type(dim) is int and dim >= 0) for dim in dims):
        raise ModelError(
            f"Cannot read model {str(path)!r}: {BATCH_DIMS_FILE} in it names no dimensions.",
            fix="Export the model again.",
        )
    return {BATCH_DIMS: tuple(dims)}


def _check_calls(program: ExportedProgram) -> None:
    # torch does not look at the description of inputs until it is needed.
    spec = program.call_spec.in_spec
    if spec is None:
        raise ValueError("it does not record its inputs")
    pytree.tree_unflatten([0] * spec.num_leaves, spec)


@contextmanager
def _quiet_torch_export() -> Iterator[None]:
    # torch.export.load logs a traceback of the same error that it then raises.
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(disabled)


def _vetted(content: bytes, path: Path) -> bytes:
    """Return the archive repacked from its vetted parts.

    Raises:
        ModelError: a part is missing or damaged, or could run code.
    """
    archive = open_archive(content, f"model {str(path)!r} as an archive of torch.export.save", error=ModelError)
    entries = {name.partition("/")[2]: name for name in archive.names()}
    if PROGRAM not in entries:
        # Older layouts keep the weights as pickles.
        _refuse(path, "an outdated layout" if "version" in archive.names() else "no program named 'model'")
    parts = {entry: archive.read(entries[entry]) for entry in FORMAT_FILES if entry in entries}
    program = without_notes(json.loads(archive.read(entries[PROGRAM])))
    fault = fault_of_program(program)
    if fault is not None:
        _refuse(path, fault)
    unknown = unknown_containers(program)
    if unknown:
        raise ModelError(
            f"Cannot read model {str(path)!r}: it takes or returns {unknown[0]}, an unknown container.",
            fix=(
                "Export a module that takes and returns tensors, tuples or dictionaries, or in Python import the "
                "container's package first."
            ),
        )
    parts[PROGRAM] = json.dumps(on_cpu(program)).encode()
    for kind in PAYLOADS:
        parts |= _payloads(archive, entries, kind, path)
    parts[SAMPLE_INPUTS] = _sample_inputs(archive, entries, path)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as packed:
        for entry, part in parts.items():
            packed.writestr(f"{ROOT}/{entry}", part)
    return buffer.getvalue()


def _payloads(archive: ForeignArchive, entries: dict[str, str], kind: str, path: Path) -> dict[str, bytes]:
    folder = f"data/{kind}"
    config_name = f"{folder}/model_{kind}_config.json"
    if config_name not in entries:
        _refuse(path, f"{kind} in an outdated layout")
    config = json.loads(archive.read(entries[config_name]))
    fault = fault_of_program(config)
    if fault is not None:
        _refuse(path, fault)
    parts = {config_name: json.dumps(on_cpu(config)).encode()}
    for name, payload in config["config"].items():
        entry = f"{folder}/{payload['path_name']}"
        if payload["use_pickle"] or not payload["path_name"].startswith(("weight_", "tensor_")):
            _refuse(path, f"{kind[:-1]} {name!r}, which is an object")
        if entry not in entries:
            raise ModelError(
                f"Cannot read model {str(path)!r}: {kind[:-1]} {name!r} is missing in the archive.",
                fix="Export the model again.",
            )
        _check_size(name, payload["tensor_meta"], archive.size(entries[entry]), path)
        parts[entry] = archive.read(entries[entry])
    return parts


def _check_size(name: str, meta: dict[str, Any], num_bytes: int, path: Path) -> None:
    # The smallest elements have one byte, so this never refuses anything that fits.
    shape = [size["as_int"] for size in meta["sizes"]]
    if math.prod(shape) > max(num_bytes, FREE_BYTES) or min(shape, default=0) < 0:
        raise ModelError(
            f"Cannot read model {str(path)!r}: its tensor {name!r} claims shape {tuple(shape)}, which is more than "
            "the file holds.",
            fix="No honest writer makes such a file; do not use it.",
        )


def _sample_inputs(archive: ForeignArchive, entries: dict[str, str], path: Path) -> bytes:
    if SAMPLE_INPUTS not in entries:
        raise ModelError(f"Cannot read model {str(path)!r}: it has no example inputs. Export the model again.")
    content = archive.read(entries[SAMPLE_INPUTS])
    if not content:
        return content
    saved = io.BytesIO()
    try:
        inputs = load_tensors(content, f"the example inputs of model {str(path)!r}")
        torch.save(inputs, saved)  # on the CPU now, wherever they were before
    except (pickle.PickleError, *READ_ERRORS):
        _refuse(path, SAMPLE_INPUTS)
    return saved.getvalue()


def _refuse(path: Path, what: str) -> NoReturn:
    raise ModelError(
        f"Model {str(path)!r} has parts that would run code, or claim more data than the file holds, when loaded "
        f"({what}).",
        fix="If you trust its author, pass --trust-pickle.",
        assurance=NOTHING_LOADED,
    )
