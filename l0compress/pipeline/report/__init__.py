"""A run as a page: what the files of its folder say, gathered and put into words.

``told`` reads the folder, ``asked`` says what was asked and what came out, ``forms``, ``history``, ``network`` and
``times`` make the drawings' numbers, ``write`` puts all of it together.
"""

from __future__ import annotations

from l0compress.pipeline.report.write import Report, write_report

__all__ = ["Report", "write_report"]
