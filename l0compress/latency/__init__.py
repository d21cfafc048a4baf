"""Latency: how long a network will take as a function of what stays of it, measured on this machine.

requires: the groups of a dense graph, and where the model will run: batch size, threads, float32 or int8.
ensures:  a :class:`~l0compress.latency.resource.Latency` that budgets bound like any other resource.

    kernels     which operators take time that depends on widths          groups → work
    operators   each of them as an ONNX model of its own, at any width
    profiling   the time of one, remembered                               operator → nanoseconds
    tables      over a grid of widths, and between its points             widths → nanoseconds
    fit, whole  whole files of several widths correct the sum             files → coefficients
    resource    what a decision will take                                 plan → nanoseconds
"""

from __future__ import annotations

from l0compress.latency.deployment import DTYPES, Deployment
from l0compress.latency.measured import MeasuredTime, measure_time

__all__ = ["DTYPES", "Deployment", "MeasuredTime", "measure_time"]
