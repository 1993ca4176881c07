"""An event as a model sees it: selection, features, truth, track parameters, symmetries, batches."""
