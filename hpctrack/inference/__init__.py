"""Inference on ranks: stages of models, and from an event to its committed candidates."""
