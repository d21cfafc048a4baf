"""Hard concrete gates: the distribution, and their attachment to a captured network."""
