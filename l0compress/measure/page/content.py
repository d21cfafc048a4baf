"""What a page shows, as plain values: texts, tables, and numbers to draw."""

from __future__ import annotations

from dataclasses import dataclass

from l0compress.measure.page.curves import Curves
from l0compress.measure.page.scatter import Scatter


@dataclass(frozen=True)
class Fact:
    """A name and what is known under it."""

    name: str
    value: str


@dataclass(frozen=True)
class Tile:
    """The few numbers that matter most: before, after, and what they say together."""

    name: str
    before: str
    after: str
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """A number as text, and how it compares with the dense model's."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Form:
    """One row of the table of forms."""

    name: str
    cells: tuple[Cell, ...]
    highlighted: bool = False


@dataclass(frozen=True)
class Kept:
    """What one small model keeps of a layer."""

    name: str
    width: int
    share: float


@dataclass(frozen=True)
class Layer:
    """One layer as it is drawn.

    Attributes:
        name: of its weight.
        length: of its bar, as a share of the longest.
        before: outputs of the dense layer, or elements of its weight where single weights were removed.
        kept: by every small model, from the largest to the smallest.
        shapes: of its weight, before and after.
        whole: why nothing of it was removed; empty where something was.
    """

    name: str
    length: float
    before: int
    kept: tuple[Kept, ...]
    shapes: str
    whole: str = ""


@dataclass(frozen=True)
class Kind:
    """Time in one kind of operator: microseconds a call in each model, and the same as shares of the longest bar."""

    name: str
    times: tuple[tuple[str, float, float], ...]


@dataclass(frozen=True)
class Whole:
    """Why something stayed whole, where, and how much that is."""

    reason: str
    source: str
    amount: str


@dataclass(frozen=True)
class Command:
    """What to type, and what for."""

    what: str
    line: str


@dataclass(frozen=True)
class Page:
    """Everything that a page shows; what is empty is left out.

    Attributes:
        title, subtitle: what the page is of.
        tiles: the few numbers that matter most.
        asked, outcome, environment: facts.
        columns, forms, forms_note: the table of forms.
        history: curves over epochs.
        history_notes, layers_note, kinds_note, scatter_note: sentences below drawings.
        layers, layers_unit: the network.
        kinds: where the time goes.
        scatters: forms over what they cost.
        wholes, wholes_note: what stayed whole.
        journal: what happened, and when.
        commands: how to make it again, and how to go on.
        made: when and by what the page was made.
    """

    title: str
    subtitle: str
    tiles: tuple[Tile, ...] = ()
    asked: tuple[Fact, ...] = ()
    outcome: tuple[Fact, ...] = ()
    columns: tuple[str, ...] = ()
    forms: tuple[Form, ...] = ()
    forms_note: str = ""
    history: tuple[Curves, ...] = ()
    history_notes: tuple[str, ...] = ()
    layers: tuple[Layer, ...] = ()
    layers_unit: str = ""
    layers_note: str = ""
    kinds: tuple[Kind, ...] = ()
    kinds_note: str = ""
    scatters: tuple[Scatter, ...] = ()
    scatter_note: str = ""
    wholes: tuple[Whole, ...] = ()
    wholes_note: str = ""
    journal: tuple[Fact, ...] = ()
    environment: tuple[Fact, ...] = ()
    commands: tuple[Command, ...] = ()
    made: str = ""
