"""Labels: what they are (``values``, ``space``), and the walk that gives every tensor its own (``walk``)."""
