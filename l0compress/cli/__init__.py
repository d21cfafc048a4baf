"""The command line: parse, call the function of the same name, render. Nothing is decided here."""

from __future__ import annotations

from l0compress.cli.app import main

__all__ = ["main"]
