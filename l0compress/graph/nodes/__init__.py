"""FX graphs and their nodes: what the stages above need to read, write, copy and describe them."""
