"""The commands, one file each, in the order of their use."""

from __future__ import annotations

from l0compress.cli.commands.bench import bench
from l0compress.cli.commands.export import export
from l0compress.cli.commands.finetune import finetune
from l0compress.cli.commands.inspect import inspect
from l0compress.cli.commands.report import report
from l0compress.cli.commands.sweep import sweep
from l0compress.cli.commands.verify import verify

ALL = (inspect, finetune, export, verify, bench, report, sweep)
