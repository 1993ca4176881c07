"""Tracks as the ground state of a network of neurons on segments: B. Denby, C. Peterson, ALEPH."""
