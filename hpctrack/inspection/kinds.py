"""Which kind of thing a path is: told by its content, not by its name."""

from __future__ import annotations

import json
from pathlib import Path

from hpctrack.errors import InputError
from hpctrack.results.content import RESULTS_FORMAT
from hpctrack.storage import candidates, edges, hdf5, hits, journals
from hpctrack.storage.hdf5 import INDEX, SHARDS
from hpctrack.storage.products import Product
from hpctrack.training.checkpoint_metadata import LATEST, META, STATE
from hpctrack.training.run_folder import CONFIG

DATASET, SHARD, DATASET_INDEX = "dataset", "shard", "dataset index"
CANDIDATES, CANDIDATES_FILE, CANDIDATES_INDEX = "candidates", "candidates file", "candidates index"
EDGES, HITS = "edges", "hits"
OF_STAGES: dict[str, Product] = {EDGES: edges.EDGES, HITS: hits.HITS}  # what a stage makes for those behind it
UNFINISHED = {f"unfinished {name}": product for name, product in OF_STAGES.items()}
UNFINISHED_DATASET, UNFINISHED_CANDIDATES, JOURNAL = "unfinished dataset", "unfinished candidates", "journal"
RUN, CHECKPOINT, CHECKPOINTS, RESULTS = "run", "checkpoint", "checkpoints folder", "results"
EXPECTED = (
    "a dataset folder, a shard, a folder or file of candidates, a folder of edges or of kept hits, a run folder, a "
    "checkpoint, an index.h5 or a results.json"
)
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def kind_of(path: Path) -> str:
    """One of the kinds above; InputError if `path` does not exist or is none of them."""
    if path.is_dir():
        return _kind_of_folder(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; expected {EXPECTED}")
    if path.suffix == ".journal":
        return JOURNAL
    if path.name == STATE:
        return CHECKPOINT
    with open(path, "rb") as file:
        head = file.read(len(HDF5_SIGNATURE))
    if head == HDF5_SIGNATURE or path.suffix == ".h5":
        return _kind_of_h5(path)
    if head.lstrip()[:1] == b"{" and _is_results(path):
        return RESULTS
    raise InputError(f"{path}: not known to hpctrack; expected {EXPECTED}")


def of_journal(path: Path) -> Product:
    """What the records of a journal are of."""
    return OF_STAGES.get(journals.product_of(path.parent.parent), candidates.CANDIDATES)


def _kind_of_folder(path: Path) -> str:
    if (path / CONFIG).is_file():
        return RUN
    if (path / STATE).is_file() or (path / META).is_file():
        return CHECKPOINT
    if (path / LATEST).is_file() or any(path.glob(f"step-*/{META}")):
        return CHECKPOINTS
    for kind, product in OF_STAGES.items():
        if product.is_in(path):
            return kind
    shards, candidate_files = any(path.glob(SHARDS)), any(path.glob("candidates-*.h5"))
    if (path / INDEX).is_file():
        if shards != candidate_files:  # the index itself may be damaged
            return DATASET if shards else CANDIDATES
        return {DATASET_INDEX: DATASET, CANDIDATES_INDEX: CANDIDATES}.get(_kind_of_h5(path / INDEX), DATASET)
    if candidate_files or (path / journals.PARTS).is_dir():
        kind = f"unfinished {journals.product_of(path)}"
        return kind if kind in UNFINISHED else UNFINISHED_CANDIDATES
    if shards:
        return UNFINISHED_DATASET
    raise InputError(f"{path}: holds nothing known to hpctrack; expected {EXPECTED}")


def _kind_of_h5(path: Path) -> str:
    """By the file's attributes; if they cannot be read, by its name."""
    reasons = {}
    for kind in (SHARD, DATASET_INDEX):
        try:
            hdf5.open_h5(path, kind.split()[-1]).close()
            return kind
        except InputError as error:
            reasons[kind] = error
    try:
        with candidates.CANDIDATES.open_file(path) as file, hdf5.damage(path):
            return CANDIDATES_INDEX if "digests" in file else CANDIDATES_FILE
    except InputError as error:
        reasons[CANDIDATES_FILE] = error
    by_name = [
        kind for kind, start in ((SHARD, "events-"), (CANDIDATES_FILE, "candidates-")) if path.match(f"{start}*")
    ]
    raise reasons[by_name[0] if by_name else SHARD]


def _is_results(path: Path) -> bool:
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("format") == RESULTS_FORMAT
