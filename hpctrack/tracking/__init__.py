"""Scores or embeddings -> track candidates: builders, and methods that need no training."""
