"""Training under a budget: the constraint, the loop, and the step from learned gates to a decision."""
