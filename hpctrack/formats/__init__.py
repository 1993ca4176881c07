"""Foreign files <-> events: TrackML's CSV, archives, detectors, and their conversion into a dataset."""
