"""The HDF5 store: schema, shards, index, candidates, edges, journals, checksums, staging, verification."""
