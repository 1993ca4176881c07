"""A model and a loss for hpctrack."""
