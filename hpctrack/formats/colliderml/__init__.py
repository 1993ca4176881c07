"""Parquet files of ColliderML (arXiv 2512.15230), which ACTS writes as well: one row an event, lists in columns."""
