"""The verbs of the `hpctrack` command, and the modules that they are."""

from __future__ import annotations

VERBS = {
    "simulate": "make TrackML events (ACTS, numpy helices)",
    "convert": "events of TrackML, ColliderML, ACTS or acorn -> sharded HDF5",
    "train": "train a model (also: torchrun -m hpctrack.train)",
    "infer": "write track candidates (also: torchrun -m hpctrack.infer)",
    "evaluate": "candidates against truth -> results.json",
    "landscape": "are trainings the same model? loss landscapes, connections, similarity, churn",
    "filters": "what a run's convolutions look for: weights of the first, images that excite each most",
    "report": "one self-contained HTML page of a run",
    "export": "a run's newest checkpoint without what only training needs, to give away",
    "export-candidates": "candidates as files of others: TrackML, ColliderML, ACTS, parquet",
    "fit": "candidates through ACTS' Kalman filter: parameters, chi2, outliers; cuts on these",
    "inspect": "what a dataset, candidates, run or checkpoint holds; --verify checks it",
    "geometry": "a detector's volumes, layers and modules, from detectors.csv or ACTS' surfaces",
    "segments": "which layers follow each other on true tracks, and how well segments agree",
    "recipes": "the recipes that come with the package, for train",
    "config": "a recipe with every default filled in; --reference: every key there is",
    "bench": "measured performance, as ratios within one run",
}
MODULES = {
    "export-candidates": "export_candidates",
    "recipes": "show_recipes",
    "config": "show_config",
}  # of verbs whose name a module of the library has; else VERB


def module_of(name: str) -> str:
    """The module whose `main` is the verb."""
    return f"hpctrack.{MODULES.get(name, name)}"
