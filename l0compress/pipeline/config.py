"""Configuration files: every setting of a run in TOML, read with the line of what is wrong, and written.

ensures: what :func:`config_text` writes is read back by :func:`read_config` as the same values.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from l0compress.errors import InputError, did_you_mean, nearest
from l0compress.pipeline.options import GATES, OPTIONS, READING, TRAINING
from l0compress.pipeline.readers import READERS
from l0compress.training.schema import Setting

SECTIONS = (READING, TRAINING, GATES)
_BY_PLACE = {(option.section, option.key): name for name, option in OPTIONS.items()}


def read_config(path: Path) -> dict[str, Any]:
    """The values that a configuration file gives, by the names in :data:`~l0compress.pipeline.options.OPTIONS`.

    Raises:
        InputError: the file is missing or no TOML; a key is unknown, or its value has a wrong type or is out of range;
            the message names file, line and key.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(
            f"Cannot read configuration {str(path)!r}: {reason}.",
            fix="Check the path, or write one with finetune --print-config.",
        ) from error
    return parse_config(text, name=str(path))


def parse_config(text: str, *, name: str) -> dict[str, Any]:
    """As :func:`read_config`, of a text; ``name`` stands for it in messages.

    >>> parse_config("seed = 7\\n[training]\\nlr = 0.01\\n", name="c.toml")
    {'seed': 7, 'lr': 0.01}
    >>> parse_config("[training]\\nepoch = 7\\n", name="c.toml")
    Traceback (most recent call last):
    ...
    l0compress_runtime.errors.InputError: c.toml, line 2: there is no setting [training] epoch. Nothing was changed.
    Did you mean [training] epochs?
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{name} is not valid TOML: {error}.", fix="Repair the file.") from error
    values: dict[str, Any] = {}
    for section, key, value in _entries(content):
        line = f"{name}, line {_line_of(text, section, key)}"
        option = _BY_PLACE.get((section, key))
        if option is None:
            raise InputError(f"{line}: there is no setting {_place(section, key)}.", fix=f"{_hint(key)}")
        values[option] = checked(option, value, OPTIONS[option].place, line=f"{line}: ")
    return values


def checked(option: str, value: Any, name: str, *, line: str = "") -> Any:
    """A value that will do; ``name`` and ``line`` say where it stands.

    Raises:
        InputError: it will not.
    """
    row = OPTIONS[option].written
    expected = row.wrong(value)
    if expected is not None:
        texts = [each for each in (value if isinstance(value, list | tuple) else [value]) if isinstance(each, str)]
        meant = next((hint for each in texts if row.wrong(each) and (hint := did_you_mean(each, row.names))), "")
        raise InputError(f"{line}{name} = {value!r}: expected {expected}.", fix=meant or "Change the value.")
    values: list[Any] = list(value) if row.many and isinstance(value, list | tuple) else [value]
    try:
        for each in values:
            READERS.get(row.format, str)(each)
    except InputError as error:
        raise type(error)(f"{line}{error}") from error
    if len(values) > 1:
        return values
    return float(values[0]) if row.kind is float else values[0]


def complete(given: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting, with its default where none is given; None where something is chosen later.

    >>> complete({"seed": 3})["seed"], complete({})["epochs"], complete({})["lr"]
    (3, 48, None)
    """
    return {name: given.get(name, option.default) for name, option in OPTIONS.items()}


def config_text(values: Mapping[str, Any]) -> str:
    """A configuration file with these values; a comment stands where there is none."""
    lines: list[str] = []
    for section in ("", *SECTIONS):
        if section:
            lines += ["", f"[{section}]"]
        options = [(name, option) for name, option in OPTIONS.items() if option.section == section]
        lines += [_written(option, values.get(name)) for name, option in options]
    return "\n".join(lines) + "\n"


def config_schema() -> dict[str, Any]:
    """The JSON Schema of configuration files, for editors that complete and check them.

    >>> config_schema()["properties"]["training"]["properties"]["epochs"]["minimum"]
    0
    """
    properties = {section: _object({}) for section in ("", *SECTIONS)}
    for name, option in OPTIONS.items():
        properties[option.section]["properties"][name] = option.written.json_schema()
    whole = properties.pop("")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "l0compress finetune --config",
        **_object({**whole["properties"], **properties}),
    }


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _written(option: Setting, value: Any) -> str:
    if value is not None:
        return tomli_w.dumps({option.key: value}).strip()
    return f"# {option.key} =   ({'required: ' if option.needed else ''}{option.absent})"


def _entries(content: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    for key, value in content.items():
        if key in SECTIONS and isinstance(value, Mapping):
            yield from ((key, inner, setting) for inner, setting in value.items())
        else:
            yield "", key, value


def _place(section: str, key: str) -> str:
    return f"[{section}] {key}" if section else key


def _hint(key: str) -> str:
    keys = [option.key for option in OPTIONS.values()]
    close = nearest(key, keys)
    places = [option.place for option in OPTIONS.values() if option.key == close]
    return f"Did you mean {places[0]}?" if places else "l0compress finetune --print-config lists all of them."


def _line_of(text: str, section: str, key: str) -> int:
    """The line on which a setting begins: after the longest beginning of the file that is TOML and lacks it."""
    lines, start = text.split("\n"), 1
    for count in range(1, len(lines) + 1):
        try:
            content = tomllib.loads("\n".join(lines[:count]))
        except tomllib.TOMLDecodeError:
            continue
        table = content.get(section, {}) if section else content
        if isinstance(table, Mapping) and key in table:
            return start
        start = count + 1
    return start
