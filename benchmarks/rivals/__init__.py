"""Other projects in the benchmark of quality: the same data, budget, number of epochs and trainer as ours.

Nothing of l0compress depends on them; ``make bench-quality RIVALS=all`` installs what the lock file has of them.
"""

from __future__ import annotations

from rivals.makers import made_by, missing, versions

__all__ = ["made_by", "missing", "versions"]
