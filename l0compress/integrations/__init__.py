"""Gates in other libraries' training loops: one module for each, all on :mod:`l0compress.integrations.control`."""
