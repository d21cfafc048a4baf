"""Groups: from labels to what can be removed, and what each removal saves."""

from __future__ import annotations

from l0compress.graph.groups.groups import Group, Groups, Move, find_groups, groups_if_any, groups_without_moves

__all__ = ["Group", "Groups", "Move", "find_groups", "groups_if_any", "groups_without_moves"]
