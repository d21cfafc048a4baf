"""Two models on the same calls: what they are called with (``calls``), and whether they agree (``equality``)."""

from __future__ import annotations

from l0compress.verification.calls import Call
from l0compress.verification.equality import Equality, OutputEquality, difference, verify

__all__ = ["Call", "Equality", "OutputEquality", "difference", "verify"]
