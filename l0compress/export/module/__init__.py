"""The user's own module, made smaller in place: the cut that a plan makes, without the graph that it was planned on."""
