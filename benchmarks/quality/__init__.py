"""How good compressed models are: every method on every task, at equal budgets and epochs, over seeds."""

from __future__ import annotations
