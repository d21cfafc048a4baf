"""Two models on the same calls (``calls``): whether outputs agree (``comparison``), and models (``equality``)."""

from __future__ import annotations

from l0compress.verification.calls import Call
from l0compress.verification.comparison import OutputEquality
from l0compress.verification.equality import Equality, difference, verify

__all__ = ["Call", "Equality", "OutputEquality", "difference", "verify"]
