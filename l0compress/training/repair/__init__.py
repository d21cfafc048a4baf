"""Repair without training: see :mod:`l0compress.training.repair.layerwise`."""

from __future__ import annotations

from l0compress.training.repair.layerwise import Repaired, RepairedLayer, repair

__all__ = ["Repaired", "RepairedLayer", "repair"]
