"""Cut: a plan says what is kept, and ``shrink`` removes the rest; ``masked`` is the reference that it must equal."""
