"""Candidates and edges against the truth: matching, metrics, counts, results.json."""
