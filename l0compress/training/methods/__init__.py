"""Baselines: other ways to decide what is removed, with the same teacher, budget and epochs."""
