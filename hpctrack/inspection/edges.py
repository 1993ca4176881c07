"""What a folder of edges holds, and whether it is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpctrack.data import candidates, edges
from hpctrack.data.verify import Problem, reason
from hpctrack.errors import InputError


def describe_edges(folder: Path) -> dict[str, Any]:
    """Totals, settings and digest."""
    found = edges.EdgeStore(folder)
    return {
        "format": f"{edges.FORMAT} {candidates.VERSION}",
        "events": len(found),
        "edges": int(found.n_edges.sum()),
        "files": len(found.shards),
        "bytes": sum((folder / name).stat().st_size for name in found.shards),
        "digest": found.digest,
        "made_with": found.attributes,
    }


def check_edges(folder: Path) -> list[Problem]:
    """Problems of a folder of edges: files and events that cannot be read or fail their checksums."""
    try:
        found = edges.EdgeStore(folder)
    except InputError as error:
        return [Problem(str(folder), reason(error, folder / candidates.INDEX))]
    problems = []
    for i, event_id in enumerate(found.event_ids):
        try:
            found.read(i)
        except InputError as error:
            path = folder / found.shards[found.shard[i]]
            problems.append(Problem(str(path), reason(error, path), event=int(event_id)))
    return problems
