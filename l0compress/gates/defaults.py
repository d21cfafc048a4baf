"""What gates are made with where nothing else is asked for; without torch, so that a command line can show it."""

from __future__ import annotations

from typing import Literal

Granularity = Literal["structured", "weights", "both"]
GRANULARITIES: tuple[Granularity, ...] = ("structured", "weights", "both")
TEMPERATURE = 0.5
OPEN_LOG_ALPHA = 2.94
