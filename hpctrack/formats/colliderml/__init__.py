"""ColliderML's parquet files: one row an event, list columns. arXiv 2512.15230; written by ACTS' Arrow plugin as well."""
