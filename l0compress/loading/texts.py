"""Sentences with labels, and the tokenizer that encodes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from l0compress.data import Data, Split
from l0compress.errors import DataError
from l0compress.loading.references import FOREIGN_ERRORS, first_line, import_extra, without_broken
from l0compress.loading.splits import PART_NAMES, SHARES, check_shares, split_whole, with_val

SUFFIXES = (".tsv", ".txt")
TEXT_COLUMNS, LABEL_COLUMNS = ("sentence", "text"), ("label", "labels", "class")
LONGEST = 128


@dataclass(frozen=True)
class TextOptions:
    """The caller's options; see :class:`l0compress.loading.DataSource`."""

    tokenizer: Path | None
    seed: int = 0
    shares: tuple[float, float, float] = SHARES
    max_length: int | None = None


@dataclass(frozen=True)
class Sentences:
    """Texts and their labels, as written."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]


def part_files(folder: Path) -> dict[str, Path]:
    """Return the files of a folder that are named after a part: ``train.tsv``, ``dev.txt``, ``stsa.binary.test``."""
    found = {}
    for file in sorted(folder.iterdir()):
        parts = [PART_NAMES[piece] for piece in file.name.lower().split(".") if piece in PART_NAMES]
        if parts and file.is_file() and file.suffix.lower() in (*SUFFIXES, *(f".{name}" for name in PART_NAMES)):
            found[parts[0]] = file
    return found


def load_texts(path: Path, options: TextOptions) -> Data:
    """Read sentences as data with a tokenizer's inputs, ``(n, length)`` int64 each, and class labels.

    A line is a label and a sentence, or the fields named ``sentence`` and ``label`` in a header line.

    Raises:
        DataError: there is no tokenizer, or a line has no label; the message names the line.
    """
    if options.tokenizer is None:
        raise _no_tokenizer(path)
    files = part_files(path) if path.is_dir() else {"train": path}
    if path.is_dir():
        check_shares(options.shares, str(path))
    if "train" not in files:
        raise DataError(f"Data {str(path)!r} has no training part: a file such as train.tsv.", fix="Add it.")
    sentences = {part: _read(file) for part, file in files.items()}
    return encoded_parts(sentences, path, options, whole=not path.is_dir(), files=files)


def encoded_parts(
    sentences: Mapping[str, Sentences],
    path: Path,
    options: TextOptions,
    *,
    whole: bool,
    files: Mapping[str, Path] | None = None,
) -> Data:
    """Encode sentences by part; a ``whole`` set, which is the training part, is split in three.

    Raises:
        DataError: there is no tokenizer, or a part has a label that the training part lacks; the message names the
            part's file, ``path`` where there are no ``files``.
    """
    if options.tokenizer is None:
        raise _no_tokenizer(path)
    classes = _sorted_classes(sentences["train"].labels)
    tokenizer = _tokenizer(options.tokenizer)
    length = options.max_length or _longest(tokenizer, sentences["train"].texts)
    splits = {
        part: _encoded(tokenizer, found, classes, length, (files or {}).get(part, path))
        for part, found in sentences.items()
    }
    about = {
        "kind": "text", "tokenizer": str(options.tokenizer), "max_length": length, "padding": "max_length",
        "truncation": True, "classes": classes,
    }  # fmt: skip
    if not whole:
        return with_val(splits, str(path), options.seed, about)
    parts = split_whole(splits["train"], str(path), options.seed, options.shares)
    return Data(parts.train, parts.val, parts.test, preprocessing=about)


def _no_tokenizer(path: Path) -> DataError:
    return DataError(
        f"Data {str(path)!r} is text.",
        fix="Name its tokenizer: --tokenizer FOLDER, with the tokenizer.json of a Hugging Face model.",
    )


def _read(path: Path) -> Sentences:
    content = path.read_bytes()
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        # Older corpora are Latin-1, in which every byte is a letter.
        lines = content.decode("latin-1").splitlines()
    header = lines[0].strip().lower().split("\t") if lines else []
    text_at = next((header.index(name) for name in TEXT_COLUMNS if name in header), None)
    label_at = next((header.index(name) for name in LABEL_COLUMNS if name in header), None)
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or (number == 1 and text_at is not None):
            continue
        if text_at is None or label_at is None:
            label, _, text = line.strip().partition("\t" if "\t" in line else " ")
        else:
            fields = line.split("\t")
            label, text = (fields[at] if at < len(fields) else "" for at in (label_at, text_at))
        if not label.strip() or not text.strip():
            raise DataError(
                f"Data {str(path)!r}, line {number}: a label and a sentence are expected.",
                fix="Separate them by a space or a tab, or name the columns in a header.",
            )
        rows.append((text.strip(), label.strip()))
    if not rows:
        raise DataError(f"Data {str(path)!r} has no sentences.", fix="Give it some.")
    return Sentences(tuple(text for text, _ in rows), tuple(label for _, label in rows))


def _sorted_classes(labels: Sequence[str]) -> list[str]:
    found = sorted(set(labels))
    return sorted(found, key=int) if all(label.lstrip("-").isdecimal() for label in found) else found


def _tokenizer(folder: Path) -> Any:
    if not folder.is_dir():
        raise DataError(f"--tokenizer {str(folder)!r}: no such folder.", fix="Check the path.")
    with without_broken("torchvision"):
        transformers = import_extra("transformers", extra="transformers", purpose="Text data", error=DataError)
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        except FOREIGN_ERRORS as reason:
            raise DataError(
                f"--tokenizer {str(folder)!r} cannot be read ({first_line(reason)}).",
                fix="Name the folder of a model with its tokenizer.json.",
            ) from reason
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def _longest(tokenizer: Any, texts: Sequence[str]) -> int:
    return min(max(len(ids) for ids in tokenizer(list(texts))["input_ids"]), LONGEST)


def _encoded(tokenizer: Any, found: Sentences, classes: list[str], length: int, file: Path) -> Split:
    index = {label: position for position, label in enumerate(classes)}
    unknown = next((label for label in found.labels if label not in index), None)
    if unknown is not None:
        raise DataError(
            f"Data {str(file)!r} has a label {unknown!r}, which the training part lacks ({', '.join(classes[:9])}).",
            fix="Correct it, or add samples of it to the training part.",
        )
    encoded = tokenizer(list(found.texts), padding="max_length", truncation=True, max_length=length)
    inputs = {name: torch.tensor(rows) for name, rows in encoded.items()}
    return Split(inputs, torch.tensor([index[label] for label in found.labels]))
