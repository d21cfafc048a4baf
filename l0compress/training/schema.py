"""The schema of settings: for each its kind, its default, its allowed values, and its help.

Flags, configuration files, ``--print-config``, the JSON Schema and the checks of the frozen settings all read it. It
imports no torch, so that a command line can show it at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any

from l0compress.errors import InputError

KIND_NAMES = {str: "text", int: "an integer", float: "a number", bool: "true or false"}
_JSON_KINDS = {str: "string", int: "integer", float: "number", bool: "boolean"}
_FACTS, _AT_TOP = "facts", "at top"


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        kind: str, int, float or bool; an integer is a float too.
        default: what holds where nothing is said; None where something is chosen, or nothing is.
        least, most, above, below: bounds of a number, with and without the bound itself; with any, it is finite.
        names: the texts to choose from, where not any will do.
        off: what says None where None cannot be written, a number below the others.
        format: what reads the text, by its name in :data:`~l0compress.pipeline.readers.READERS`.
        key: its name, the same for the flag and in the file, one of a kind over all sections.
        section: the table of the file that it is in; empty for the top.
        field: the field of the settings that it sets, where there is one.
        absent: what None means, for people.
        needed: a run cannot do without it.
        help: what its flag says; empty where there is no flag.
        metavar: what stands for the value of the flag.
        panel: the part of the help that the flag is in.
        one_way: true can be said by a flag, false only by leaving it out.
        or_number: a number may stand where text is expected.
        or_reference: the name of a function, ``package.module:function``, may stand where there are names.
        many: there may be several, a flag each, in a file as a list; one stands by itself.
    """

    kind: type
    default: Any = None
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    names: tuple[str, ...] = ()
    off: float | None = None
    format: str = ""
    key: str = ""
    section: str = ""
    field: str = ""
    absent: str = ""
    needed: bool = False
    help: str = ""
    metavar: str | None = None
    panel: str | None = None
    one_way: bool = False
    or_number: bool = False
    or_reference: bool = False
    many: bool = False

    @property
    def place(self) -> str:
        """Return its name with its table."""
        return f"[{self.section}] {self.key}" if self.section else self.key

    @property
    def written(self) -> Setting:
        """Return the setting as a flag or file has it, where ``off`` is a value like others and stands for None.

        >>> Setting(float, above=0, off=0).expected, Setting(float, above=0, off=0).written.expected
        ('a finite number above 0', 'at least 0')
        """
        return self if self.off is None else replace(self, above=None, least=self.off)

    @property
    def expected(self) -> str:
        """Return which values are allowed, in words; empty if any value of the kind is."""
        if self.names:
            return f"one of {', '.join(self.names)}{', or PACKAGE.MODULE:FUNCTION' if self.or_reference else ''}"
        if self.least is not None and self.most is not None:
            return f"between {self.least:g} and {self.most:g}"
        if self.least is not None and self.below is not None:
            return f"{self.least:g} or more and below {self.below:g}"
        if self.least == -math.inf:
            return "a finite number"
        if self.least is not None:
            return f"at least {self.least:g}"
        return "" if self.above is None else f"a finite number above {self.above:g}"

    def wrong(self, value: Any) -> str | None:
        """Return what is expected instead of ``value``; None if it is allowed.

        >>> epochs = Setting(int, least=0)
        >>> epochs.wrong("many"), epochs.wrong(-1), epochs.wrong(2)
        ('an integer', 'at least 0', None)
        """
        if self.many and isinstance(value, list | tuple):
            return next((wrong for each in value if (wrong := self.wrong(each)) is not None), None)
        if not self._is_of_kind(value):
            kind = "text or a number" if self.or_number else KIND_NAMES[self.kind]
            return kind + (", or a list of such" if self.many else "")
        return None if self._is_within(value) else self.expected

    def json_schema(self) -> dict[str, Any]:
        """Return the setting as a property in JSON Schema.

        >>> Setting(int, 48, least=0, help="Epochs.").json_schema()
        {'type': 'integer', 'description': 'Epochs.', 'default': 48, 'minimum': 0}
        """
        bounds = {"minimum": self.least, "maximum": self.most, "exclusiveMinimum": self.above}
        bounds["exclusiveMaximum"] = self.below
        told = {"description": self.help or None, "default": self.default, "enum": list(self.names) or None}
        finite = {name: bound for name, bound in bounds.items() if bound is not None and math.isfinite(bound)}
        kind = _JSON_KINDS[self.kind]
        own: dict[str, Any] = {"type": [kind, "number"] if self.or_number else kind}
        if self.or_reference:
            own = {"anyOf": [{"type": "string", "enum": told.pop("enum")}, {"type": "string", "pattern": ":"}]}
        return {
            **({"anyOf": [own, {"type": "array", "items": own, "minItems": 1}]} if self.many else own),
            **{name: value for name, value in told.items() if value is not None},
            **finite,
        }

    def _is_of_kind(self, value: Any) -> bool:
        if isinstance(value, bool) or self.kind is bool:
            return isinstance(value, bool) and self.kind is bool
        return isinstance(value, {str: str, int: Integral, float: Real}[self.kind]) or (
            self.or_number and isinstance(value, Real)
        )

    def _is_within(self, value: Any) -> bool:
        if self.names:
            return value in self.names or (self.or_reference and ":" in value)
        if all(bound is None for bound in (self.least, self.most, self.above, self.below)):
            return True
        return (
            math.isfinite(value)
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )


def setting(*, at_top: bool = False, **facts: Any) -> dict[str, Any]:
    """Make the metadata of a field of frozen settings; ``facts`` are attributes of its :class:`Setting`.

    ``at_top`` puts it at the top of the file, not into the section of its class.
    """
    return {_FACTS: facts, _AT_TOP: at_top}


def settings_of(kind: type, *, section: str) -> Iterator[Setting]:
    """Yield the rows of a class of settings, in the order of its fields. The kind of a field is that of its default.

    >>> from dataclasses import field
    >>> @dataclass(frozen=True)
    ... class Rates:
    ...     learning_rate: float = field(default=0.1, metadata=setting(above=0, key="lr"))
    >>> [(row.place, row.field, row.default) for row in settings_of(Rates, section="training")]
    [('[training] lr', 'learning_rate', 0.1)]
    """
    for each in fields(kind):
        if _FACTS in each.metadata:
            own = {"kind": type(each.default), "key": each.name, **each.metadata[_FACTS]}
            yield Setting(
                default=each.default, field=each.name, section="" if each.metadata[_AT_TOP] else section, **own
            )


def check_settings(settings: Any) -> None:
    """Check every field of frozen settings against its row. A function may stand where text is expected.

    Raises:
        InputError: a value is of a wrong kind or out of range.
    """
    for row in settings_of(type(settings), section=""):
        value = getattr(settings, row.field)
        if (value is None and (row.default is None or row.off is not None)) or (row.kind is str and callable(value)):
            continue
        expected = row.wrong(value)
        if expected is not None:
            raise InputError(f"{row.field}={value!r}: expected {expected}.", fix="")
