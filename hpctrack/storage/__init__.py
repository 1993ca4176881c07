"""The HDF5 store: schema, shards, index, candidates, edges, kept hits, journals, checksums, staging, verification."""
