"""Spellings of earlier versions. They keep working, and nothing else mentions them: no help text, no ``__all__``.

A bundle was called ``csr`` where it is made, after the form of its sparse layers.
"""

from __future__ import annotations

# Formats of ``export``.
FORMATS = {"csr": "bundle"}

# Names of the package ``l0compress``.
PUBLIC = {"CsrSettings": "BundleSettings", "export_csr": "export_bundle"}

# Names that only left the package's face, and where they are.
LEFT = {"keep_zeros_": "l0compress.training.sparsity", "unshrink_state": "l0compress.graph"}
