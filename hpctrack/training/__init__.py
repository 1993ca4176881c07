"""Training: the assembly of a run, its steps, checkpoints, what it says, what it learns of itself."""
