"""Between which numbers the values of a graph lie, whatever the input."""

from __future__ import annotations

from l0compress.graph.groups.intervals.interval import Interval as Interval
from l0compress.graph.groups.intervals.walk import intervals as intervals
