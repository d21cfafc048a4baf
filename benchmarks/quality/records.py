"""Finished cells in a JSON-lines file, and what they depend on."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from l0compress.pipeline.durable import write_durably
from quality.cells import Cell

REPOSITORY = Path(__file__).resolve().parents[2]
# What a trained model and its score depend on; commands, files, the runtime and pages may change without it.
_PACKAGE = ("data", "loading", "graph", "gates", "training")
_HARNESS = ("plain_training.py", "quality/running.py", "quality/llama.py")
# What a row of another project depends on beside it.
RIVAL_SOURCES = tuple(
    f"benchmarks/rivals/{name}.py" for name in ("made", "training", "with_onnxsim", "with_torch_pruning")
)
SOURCES = (*(f"l0compress/{name}" for name in _PACKAGE), *(f"benchmarks/{name}" for name in _HARNESS))


@dataclass(frozen=True)
class Row:
    """One finished cell.

    Attributes:
        fingerprint: of everything that decides the numbers.
        params, macs: of the model that was measured.
        reached: its cost in the cell's unit as a share of the dense model's.
        val, test: the task's score after the last epoch; the test part was read for this one number.
        best_val: of the best epoch by validation.
        seconds: that the cell took; ``cpu_seconds`` of all its threads.
        threads: of the process; ``jobs`` of these ran beside each other.
    """

    cell: Cell
    fingerprint: str
    params: int
    macs: int
    reached: float
    val: float
    test: float
    best_val: float
    seconds: float
    cpu_seconds: float
    threads: int
    jobs: int

    def to_json(self) -> str:
        return json.dumps({"key": self.cell.key, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> Row:
        values: dict[str, Any] = json.loads(text)
        values.pop("key")
        return cls(cell=Cell(**values.pop("cell")), **values)


class Records:
    """The file of finished cells. A line is there whole or not at all, and two processes may write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(f"{path}.lock")

    def rows(self) -> list[Row]:
        """All that was ever finished, the latest last."""
        with self._lock:
            text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        return [Row.from_json(line) for line in text.splitlines()]

    def append(self, row: Row) -> None:
        """Add one line; the file is replaced as a whole."""
        with self._lock:
            before = self.path.read_bytes() if self.path.exists() else b""
            write_durably(self.path, before + row.to_json().encode() + b"\n")

    def finished(self, fingerprints: Mapping[Cell, str], *, any_version: bool = False) -> dict[Cell, Row]:
        """The latest row of each cell whose fingerprint is still right, or of any, where that is asked for."""
        rows = {row.cell: row for row in self.rows() if any_version or fingerprints.get(row.cell) == row.fingerprint}
        return {cell: row for cell, row in rows.items() if cell in fingerprints}


def fingerprint(*parts: str) -> str:
    """A short hash of texts.

    >>> fingerprint("a", "b") == fingerprint("ab", "")
    False
    """
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def sources_fingerprint(folder: Path = REPOSITORY, names: Iterable[str] = SOURCES) -> str:
    """A hash of the code under ``folder``: comments, docstrings and layout are not in it."""
    roots = [folder / name for name in names]
    files = [file for root in roots for file in (sorted(root.rglob("*.py")) if root.is_dir() else [root])]
    return fingerprint(*(f"{file.relative_to(folder)} {code_of(file.read_text(encoding='utf-8'))}" for file in files))


def code_of(source: str) -> str:
    """What Python makes of a source text, without its docstrings.

    >>> code_of('def f():\\n    "Say one."\\n    return 1  # one') == code_of('def f(): return 1')
    True
    >>> code_of('x = 1') == code_of('x = 2')
    False
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
    return ast.dump(tree)


def files_fingerprint(path: Path) -> str:
    """A hash of a file, or of all files of a folder."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return fingerprint(*(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files))
