"""Gates in the training loops of other libraries: one module for each, all on :mod:`l0compress.integrations.control`."""
