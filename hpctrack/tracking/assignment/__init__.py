"""Tracks by exact assignment: of any edges' scores, and of directions alone."""
