"""Read untrusted JSON: one value at a time, each checked for type and range."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from l0compress_runtime.archive import FormatError

T = TypeVar("T")

MOST_ITEMS = 1_000_000
LONGEST_TEXT = 4096


class Fields:
    """An object of a JSON document, with its place in the document for error messages."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise FormatError(f"{where}: an object is expected")
        self._value: dict[str, Any] = value
        self.where = where

    def text(self, key: str, among: tuple[str, ...] | None = None) -> str:
        """Return a string, optionally one of a few."""
        value = self._value.get(key)
        if not isinstance(value, str) or len(value) > LONGEST_TEXT or (among is not None and value not in among):
            expected = f"one of {', '.join(among)}" if among is not None else "a text"
            raise self.wrong(key, expected)
        return value

    def optional_text(self, key: str, among: tuple[str, ...] | None = None) -> str | None:
        """Return a string or null."""
        return None if self._value.get(key) is None else self.text(key, among)

    def integer(self, key: str, low: int = 0, high: int = 2**48) -> int:
        """Return an integer in a range, both ends included."""
        value = self._value.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.wrong(key, f"an integer from {low} to {high}")
        return value

    def optional_integer(self, key: str, low: int = 0, high: int = 2**48) -> int | None:
        """Return an integer in a range, or null."""
        return None if self._value.get(key) is None else self.integer(key, low, high)

    def flag(self, key: str) -> bool:
        """Return true or false."""
        value = self._value.get(key)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def number(self, key: str) -> float:
        """Return a finite number of at least 0."""
        value = self._value.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e300:
            raise self.wrong(key, "a number of at least 0")
        return float(value)

    def items(self, key: str) -> list[Any]:
        """Return a list."""
        value = self._value.get(key)
        if not isinstance(value, list) or len(value) > MOST_ITEMS:
            raise self.wrong(key, "a list")
        return value

    def integers(self, key: str, low: int = 0, high: int = 2**31 - 1) -> tuple[int, ...]:
        """Return a list of integers in a range."""
        values = self.items(key)
        if any(isinstance(v, bool) or not isinstance(v, int) or not low <= v <= high for v in values):
            raise self.wrong(key, f"a list of integers from {low} to {high}")
        return tuple(values)

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of strings."""
        values = self.items(key)
        if any(not isinstance(value, str) or len(value) > LONGEST_TEXT for value in values):
            raise self.wrong(key, "a list of texts")
        return tuple(values)

    def each(self, key: str, parse: Callable[[Fields], T]) -> tuple[T, ...]:
        """Return a list of objects, parsed one by one."""
        return tuple(parse(Fields(value, f"{self.where}{key}[{i}].")) for i, value in enumerate(self.items(key)))

    def mapped(self, key: str, parse: Callable[[Fields], T]) -> dict[str, T]:
        """Return an object of objects, parsed one by one."""
        inner = Fields(self._value.get(key), f"{self.where}{key}: ")
        return {name: parse(Fields(value, f"{self.where}{key}.{name}.")) for name, value in inner.raw().items()}

    def optional(self, key: str, parse: Callable[[Fields], T]) -> T | None:
        """Return an object, parsed, or null."""
        value = self._value.get(key)
        return None if value is None else parse(Fields(value, f"{self.where}{key}."))

    def raw(self) -> Mapping[str, Any]:
        """Return the object as it is; its keys are strings of a reasonable length."""
        if len(self._value) > MOST_ITEMS or any(len(key) > LONGEST_TEXT for key in self._value):
            raise FormatError(f"{self.where}too many keys, or keys that are too long")
        return self._value

    def wrong(self, key: str, expected: str) -> FormatError:
        """Return the error to raise for a key."""
        found = repr(self._value[key])[:80] if key in self._value else "nothing"
        return FormatError(f"{self.where}{key} is {found}, expected {expected}")
