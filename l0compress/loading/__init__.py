"""From files, names and flags to objects: models and data. No pickle is read unless the caller trusts it."""

from __future__ import annotations

from l0compress.loading.datasets import DataSource, load_data
from l0compress.loading.exported import load_pt2
from l0compress.loading.factories import parse_factory_args
from l0compress.loading.fit import check_labels, check_values, fit_data
from l0compress.loading.models import Model, ModelSource, load_model
from l0compress.loading.parts import as_data
from l0compress.loading.references import import_reference

__all__ = [
    "DataSource",
    "Model",
    "ModelSource",
    "as_data",
    "check_labels",
    "check_values",
    "fit_data",
    "import_reference",
    "load_data",
    "load_model",
    "load_pt2",
    "parse_factory_args",
]
