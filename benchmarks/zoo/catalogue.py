"""What is tried: one entry a model, grouped by where it comes from."""

from __future__ import annotations

from zoo.entry import Entry
from zoo.plain import plain_entries
from zoo.timm_families import timm_entries
from zoo.torchvision_models import torchvision_entries
from zoo.transformers_models import transformers_entries


def entries() -> list[Entry]:
    """The whole catalogue. Importing the libraries behind it is left to the builders."""
    return [*torchvision_entries(), *timm_entries(), *transformers_entries(), *plain_entries()]


def find(name: str) -> Entry:
    return next(entry for entry in entries() if entry.name == name)
