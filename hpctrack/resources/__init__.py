"""Models of seconds and bytes, learned from the run, and the memory modes that they choose."""
