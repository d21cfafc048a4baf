"""The verbs of the command line as functions: each loads, computes, checks and writes, and returns a frozen value.

One file a verb, imported by itself, so that ``inspect`` does not wait for what only ``export`` needs::

    inspection.inspect    compress.compress (one call, in memory)    training_run.finetune_run (files to a run folder)
    exporting.export_run  artifacts.verify_artifact, artifacts.load  benching.bench_artifact
"""

from __future__ import annotations
