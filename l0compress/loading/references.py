"""Names of Python objects on the command line: ``package.module:function``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from l0compress.errors import InputError

# What foreign code may raise when it is imported, called or asked to read a broken file.
FOREIGN_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


def first_line(error: BaseException) -> str:
    """Return the first non-empty line of an error's message, with its type, to fit into our own message.

    Example:
        >>> first_line(ValueError("bad value\\nlong explanation"))
        'ValueError: bad value'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def is_reference(text: str) -> bool:
    """Return whether a text has the form ``package.module:function``.

    Example:
        >>> is_reference("nets.lenet:build"), is_reference("digits.npz"), is_reference("C:/data.npz")
        (True, False, False)
    """
    module, colon, name = text.partition(":")
    return bool(colon) and name.isidentifier() and all(part.isidentifier() for part in module.split("."))


def import_reference(reference: str, *, flag: str, error: type[InputError] = InputError) -> Any:
    """Import the object that ``package.module:function`` names; the working directory is searched first.

    Args:
        reference: the name.
        flag: the flag or argument that it was given for, for messages.
        error: the class to raise.

    Example:
        >>> import_reference("math:sqrt", flag="--loss")(9.0)
        3.0

    Raises:
        InputError: (or ``error``) the form is wrong, the module cannot be imported, or has no such name.
    """
    if not is_reference(reference):
        raise error(
            f"{flag} {reference!r} does not have the form package.module:function.",
            fix=f"Write for example {flag} nets.lenet:build.",
        )
    module_name, _, name = reference.partition(":")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except FOREIGN_ERRORS as reason:
        raise error(
            f"{flag} {reference!r}: module {module_name!r} cannot be imported ({first_line(reason)}).",
            fix="Check the spelling, and run where the module is (the working directory is searched).",
        ) from reason
    try:
        return getattr(module, name)
    except AttributeError as reason:
        raise error(
            f"{flag} {reference!r}: module {module_name!r} has no {name!r}.", fix="Check the spelling."
        ) from reason


def call_reference(
    reference: str, *, flag: str, error: type[InputError] = InputError, arguments: Mapping[str, Any] | None = None
) -> Any:
    """Import what a reference names and call it, without arguments or with keyword arguments.

    Example:
        >>> call_reference("fractions:Fraction", flag="--factory", arguments={"numerator": 3})
        Fraction(3, 1)

    Raises:
        InputError: (or ``error``) it cannot be imported or called, or the call raises.
    """
    function = import_reference(reference, flag=flag, error=error)
    if not callable(function):
        raise error(
            f"{flag} {reference!r} names a {type(function).__name__}, which cannot be called.", fix="Name a function."
        )
    try:
        return function(**(arguments or {}))
    except FOREIGN_ERRORS as reason:
        given = f" with {dict(arguments)}" if arguments else ""
        raise error(
            f"{flag} {reference!r} failed when it was called{given} ({first_line(reason)}).",
            fix="Check the function and what it is given.",
        ) from reason


def import_extra(module: str, *, extra: str, purpose: str, error: type[InputError] = InputError) -> ModuleType:
    """Import a library that only some users need.

    Args:
        module: its name in Python.
        extra: the extra of this package that installs it.
        purpose: what needs it, as the subject of a sentence.
        error: the class to raise.

    Example:
        >>> import_extra("no_such_library", extra="images", purpose="An image folder")
        Traceback (most recent call last):
        ...
        l0compress_runtime.errors.InputError: An image folder needs no_such_library, which is not installed. Nothing was
        changed. Install it: pip install 'l0compress[images]'.

    Raises:
        InputError: (or ``error``) it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as reason:
        raise error(
            f"{purpose} needs {module.partition('.')[0]}, which is not installed.",
            fix=f"Install it: pip install 'l0compress[{extra}]'.",
        ) from reason


@contextmanager
def without_broken(module: str) -> Iterator[None]:
    """Treat an installed library that fails on import as not installed while the body runs.

    Libraries look for optional companions, and fail as a whole if one is installed that was compiled for another
    version of torch, as torchvision often is.
    """
    if module in sys.modules or _imports(module):
        yield
        return
    missing: dict[str, Any] = {module: None}
    sys.modules.update(missing)
    try:
        yield
    finally:
        del sys.modules[module]


def _imports(module: str) -> bool:
    try:
        importlib.import_module(module)
    except (ImportError, RuntimeError, OSError):
        return False
    return True
