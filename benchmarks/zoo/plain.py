from __future__ import annotations
def plain_entries(): return []
