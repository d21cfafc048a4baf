"""The model card of an exported folder: what was cut, what it scores, what was proven, and how it is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D

from l0compress.export.huggingface.layouts import Layouts
from l0compress.graph.cut.plan import Keeps
from l0compress.graph.groups.cost import Cost, cost_lines
from l0compress.verification.equality import Equality


@dataclass(frozen=True)
class Facts:
    """What a card says that the model itself does not.

    Attributes:
        dense, small: what both cost.
        scores: lines of a table: what was measured, of the dense model, of the small one.
        target: what was asked for.
    """

    dense: Cost | None = None
    small: Cost | None = None
    scores: Sequence[tuple[str, str, str]] = ()
    target: str = ""


NO_FACTS = Facts()


@dataclass(frozen=True)
class Loading:
    """How the folder is loaded.

    Attributes:
        how: in a sentence.
        auto: the ``Auto`` class.
        trusted: whether that runs the code in the folder.
        sentences: whether the folder is one of sentence-transformers.
    """

    how: str
    auto: str
    trusted: bool
    sentences: bool = False


@dataclass(frozen=True)
class Widths:
    """A width before and after, of something named."""

    name: str
    before: int
    after: int


def widths_of(model: nn.Module, keeps: Mapping[str, Keeps], layouts: Layouts) -> Iterator[Widths]:
    """The widths that changed: heads and their widths by attention module, and the outputs of every other product.

    >>> import torch
    >>> keeps = {"0.weight": (torch.tensor([0, 2]), None)}
    >>> [*widths_of(nn.Sequential(nn.Linear(4, 3)), keeps, Layouts())]
    [Widths(name='0', before=3, after=2)]
    """
    told = set()
    for name, note in layouts.notes.items():
        for what, (before, after) in note.items():
            if before != after:
                yield Widths(f"{name}: {what}", before, after)
        told.add(name)
    for name, module in model.named_modules():
        kept = keeps.get(f"{name}.weight")
        if kept is None or any(name.startswith(f"{attention}.") for attention in told):
            continue
        dim = 1 if isinstance(module, Conv1D | nn.Embedding) else 0
        left = kept[dim]
        if isinstance(module, nn.Linear | Conv1D | nn.Embedding) and left is not None:
            yield Widths(name, module.get_parameter("weight").shape[dim], len(left))


def card_of(
    widths: Sequence[Widths], loading: Loading, facts: Facts, equality: Equality, front: Mapping[str, str]
) -> str:
    """The text of ``README.md``: front matter as the Hub reads it, and the rest for people."""
    lines = [
        "---",
        f"library_name: {'sentence-transformers' if loading.sentences else 'transformers'}",
        "tags:",
        "- l0compress",
        "- pruned",
        *(f"{key}: {value}" for key, value in front.items()),
        "---",
        "",
        "# A smaller model, cut by l0compress",
        "",
        *_costs(facts),
        "## How to load it",
        "",
        loading.how[0].upper() + loading.how[1:] + ".",
        "",
        "```python",
        *_code(loading),
        "```",
        "",
        "## What was proven",
        "",
        "Loaded by `from_pretrained`, this model computes what the dense model computes with the removed channels "
        f"silenced: the largest difference was {equality.max_relative:.2g} of the largest output, at batch sizes "
        f"{', '.join(map(str, equality.batch_sizes))}.",
        "",
        "## What was cut",
        "",
        *_table(widths),
        "",
    ]
    return "\n".join(lines)


def _costs(facts: Facts) -> Iterator[str]:
    if facts.target:
        yield from (f"Asked for: `{facts.target}`.", "")
    if facts.dense is not None and facts.small is not None:
        yield from (f"- {line}" for line in cost_lines(facts.dense, facts.small))
        yield ""
    if facts.scores:
        yield from ("| | dense | small |", "|---|---|---|")
        yield from (f"| {' | '.join(row)} |" for row in facts.scores)
        yield ""


def _code(loading: Loading) -> Iterator[str]:
    trust = ", trust_remote_code=True" if loading.trusted else ""
    if loading.sentences:
        yield from (
            "from sentence_transformers import SentenceTransformer",
            "",
            f'model = SentenceTransformer("path/to/this/folder"{trust})',
        )
        return
    yield from (
        f"from transformers import {loading.auto}",
        "",
        f'model = {loading.auto}.from_pretrained("path/to/this/folder"{trust})',
    )


def _table(widths: Sequence[Widths]) -> Iterator[str]:
    if not widths:
        yield "No width changed."
        return
    yield from ("| layer | before | after |", "|---|---|---|")
    yield from (f"| {one.name} | {one.before:,} | {one.after:,} |" for one in widths)


def front_matter(source_name: object) -> dict[str, str]:
    """What the Hub reads: the model that this one was made of, where that has a name there.

    >>> front_matter("org/model"), front_matter("/home/me/model")
    ({'base_model': 'org/model'}, {})
    """
    is_hub = isinstance(source_name, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", source_name) is not None
    return {"base_model": source_name} if is_hub and isinstance(source_name, str) else {}
