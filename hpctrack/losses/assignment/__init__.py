"""Losses on segments: of their scores, and of the assignment that is made of these (T. Kortus et al.)."""
