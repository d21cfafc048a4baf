"""Artifacts: a captured graph as a file that runs elsewhere, written only after it has been verified equal."""
