"""Losses of models that see an event as an image."""
