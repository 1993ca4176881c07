"""Candidates and edges against the truth: matching, metrics, counts, kinds of track."""
