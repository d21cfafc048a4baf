"""The transformer on sentences: SST-2, and docstrings by the package that they come from."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from functools import partial
from hashlib import sha256
from pathlib import Path

import torchvision_without_ops
from pretrained import INSTALL, PACKAGE, minilm_folder
from sst2 import DENSE_EPOCHS, SENTENCES, make_dense, sentences

from l0compress.pipeline.sources import prepare
from quality.cells import ONNXSIM, Grid
from quality.problem import Problem, Score, Task, hits

BUDGETS, EPOCHS = (0.7, 0.5, 0.35, 0.25), (0, 4, 12)
ACCURACY = Score("accuracy in %", hits, scale=100, higher_is_better=True)
PACKAGES = ("matplotlib", "networkx", "numpy", "pandas", "scipy", "sklearn", "sympy", "torch")
NAMES = re.compile("|".join([*PACKAGES, "scikit-learn", "pytorch", r"\bnp\b", r"\bpd\b", r"\bplt\b", r"\bnx\b"]), re.I)
A_CLASS, FEWEST_WORDS = 1_100, 5
DOCSTRING_EPOCHS = 3


def _no_transformer() -> str | None:
    if importlib.util.find_spec("transformers") is None:
        return "transformers is not installed"
    return None if minilm_folder() is not None else f"the package {PACKAGE} is not installed: {INSTALL}"


def _no_sst2() -> str | None:
    return _no_transformer() or (None if SENTENCES.exists() else f"{SENTENCES} does not exist")


def _no_docstrings() -> str | None:
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    return _no_transformer() or (f"{', '.join(absent)} not installed" if absent else None)


def docstrings(package: str) -> Iterator[tuple[str, str]]:
    """The file and the first paragraph of every docstring of an installed package, its tests left out."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        return
    root = Path(found.origin).parent
    for file in sorted(root.rglob("*.py")):
        name = file.relative_to(root).as_posix()
        if "test" not in name:
            for node in ast.walk(ast.parse(file.read_bytes())):
                if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    text = first_paragraph(ast.get_docstring(node) or "")
                    if len(text.split()) >= FEWEST_WORDS:
                        yield name, text


def first_paragraph(docstring: str) -> str:
    """On one line, without the names that would give the package away.

    >>> first_paragraph("Like np.sum of NumPy,\\nbut slow.\\n\\nMore.")
    'Like _.sum of _, but slow.'
    """
    return NAMES.sub("_", " ".join(docstring.strip().split("\n\n")[0].split()))


def part_of(file: str) -> str:
    """The part that all docstrings of one file go to: similar ones stand beside each other."""
    place = int(sha256(file.encode()).hexdigest(), 16) % 20
    return "test" if place < 4 else "val" if place < 6 else "train"


def write_docstrings(folder: Path) -> None:
    """A TSV file a part: the label, which is the package, and the text. No text is there twice."""
    lines: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    seen: set[str] = set()
    for package in PACKAGES:
        texts = {}
        for file, text in docstrings(package):
            letters = re.sub(r"[^a-z]+", " ", text.lower())
            if letters not in seen:
                seen.add(letters)
                texts[sha256(f"{package} {text}".encode()).hexdigest()] = (file, text)
        for _, (file, text) in sorted(texts.items())[:A_CLASS]:
            lines[part_of(f"{package}/{file}")].append(f"{package}\t{text}")
    folder.mkdir(parents=True)
    for part, found in lines.items():
        (folder / f"{part}.tsv").write_text("\n".join(found) + "\n", encoding="utf-8")


def _dense_sst2(folder: Path, taste: bool) -> None:
    _declared()
    make_dense(folder, epochs=0 if taste else DENSE_EPOCHS)


def _dense_docstrings(folder: Path, taste: bool) -> None:
    _declared()
    write_docstrings(folder / "corpus")
    epochs = 0 if taste else DOCSTRING_EPOCHS
    make_dense(folder / "model", corpus=folder / "corpus", num_classes=len(PACKAGES), epochs=epochs)


def _declared() -> None:
    # transformers imports torchvision where it is installed.
    if importlib.util.find_spec("torchvision") is not None:
        torchvision_without_ops.load()


def _problem(model: Path, corpus: Path) -> Problem:
    _declared()
    from transformers import AutoModelForSequenceClassification

    prepared = prepare(AutoModelForSequenceClassification.from_pretrained(model), sentences(model, corpus))
    return Problem(prepared.graph, prepared.data)


SST2 = Task(
    title="MiniLM on SST-2",
    grid=Grid(
        "sst2",
        "macs",
        BUDGETS,
        EPOCHS,
        extra=((0.67, 0),),
        quick=((0.5, 0), (0.25, 0)),
        rivals=(ONNXSIM,),
    ),
    score=ACCURACY,
    about="all-MiniLM-L6-v2 with a head for SST-2, fine-tuned for two epochs; 6,920 sentences of at most 32 tokens.",
    missing=_no_sst2,
    make_dense=_dense_sst2,
    load=partial(_problem, corpus=SENTENCES),
)

DOCSTRINGS = Task(
    title="MiniLM on docstrings",
    grid=Grid("text2", "macs", BUDGETS, EPOCHS, rivals=(ONNXSIM,)),
    score=ACCURACY,
    about=(
        f"The first paragraphs of docstrings by the package that they come from: {', '.join(PACKAGES)}, at most "
        f"{A_CLASS:,} each, in the locked versions. The names of the packages are blanked out, no text is there twice, "
        "and all docstrings of a file are in the same part."
    ),
    missing=_no_docstrings,
    make_dense=_dense_docstrings,
    load=lambda folder: _problem(folder / "model", folder / "corpus"),
)
