"""Graphs of acorn and gnn_tracking, written as these write them: every value comes in, none is made up."""

from __future__ import annotations

import numpy as np
import torch
from acts_files import converted
from helpers import make_event_tables, make_trackml
from torch_geometric.data import Data

from hpctrack.formats.acorn import NEVER
from hpctrack.storage import schema


def columns(prefix: str, frame, names) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": torch.from_numpy(frame[name].to_numpy().copy()) for name in names}


def edges_of(truth) -> tuple[np.ndarray, np.ndarray]:
    """Edges along tracks, and the particle of each."""
    row = truth.particle_id.to_numpy()
    tracks = [np.flatnonzero(row == owner) for owner in np.unique(row[row != 0])]
    edges = np.concatenate([np.stack([rows[:-1], rows[1:]]) for rows in tracks], axis=1)
    return edges, row[edges[0]]


def test_acorn_is_equal_to_the_csv_route(tmp_path):
    """With `hit_` and without; the particles' numbers are beyond what a float64 holds."""
    other = converted(make_trackml(tmp_path / "csv", [7, 8]), tmp_path / "other")
    for prefix in ("", "hit_"):
        folder = tmp_path / f"acorn{prefix}"
        (folder / "trainset").mkdir(parents=True)
        for i, event_id in enumerate((7, 8)):
            tables = make_event_tables(seed=event_id)
            edges, owner = edges_of(tables["truth"])
            values = columns(prefix, tables["hits"], ["hit_id", "x", "y", "z", "volume_id", "layer_id", "module_id"])
            values["hit_id"] = values.pop("hit_hit_id", values.get("hit_id"))
            cells = other.read(i).tables["cells"]
            theirs = ["cell_count", "cell_val", "lx", "ly", "leta", "lphi", "geta", "gphi"]
            names = dict(zip(schema.CELLS, theirs, strict=True))
            values |= {
                f"{prefix}{theirs}": torch.from_numpy(cells[ours].astype(float)) for ours, theirs in names.items()
            }
            values["track_particle_id" if prefix else "particle_id"] = torch.from_numpy(owner)
            graph = Data(**values, track_edges=torch.from_numpy(edges), event_id=f"{event_id:09d}", config=[{"a": 1}])
            torch.save(graph, folder / f"trainset/event{event_id:09d}-graph.pyg")
        dataset = converted(folder, tmp_path / f"out{prefix}")
        assert dataset.lacks == NEVER and dataset.event_ids.tolist() == [7, 8]
        for i in (0, 1):
            one, two = dataset.read(i, verify=True), other.read(i, verify=True)
            for name in set(dataset.columns) - {"particles.particle_type", "truth.particle_row", "particles.nhits"}:
                left, right = one.column(name), two.column(name)
                assert np.array_equal(left, np.sort(right) if name.startswith("particles") else right), name


def test_gnn_tracking_has_positions_in_its_features(tmp_path):
    tables = make_event_tables(seed=3)
    hits, truth = tables["hits"], tables["truth"]
    r, phi = np.hypot(hits.x, hits.y), np.arctan2(hits.y, hits.x)
    x = np.stack([r / 1000, phi / np.pi, hits.z / 1000, r], axis=1)
    layer = torch.from_numpy(hits.layer_id.to_numpy() // 2)
    owner = torch.from_numpy(truth.particle_id.to_numpy().copy())
    torch.save(Data(x=torch.from_numpy(x).float(), layer=layer, particle_id=owner), tmp_path / "data21_s0.pt")
    scales = ("--option", "scales=[1000, 3.141592653589793, 1000]")
    event = converted(tmp_path, tmp_path / "out", *scales).read(0, verify=True)
    assert event.event_id == 21
    for axis in "xyz":
        np.testing.assert_allclose(event.column(f"hits.{axis}"), hits[axis], rtol=1e-5, atol=1e-4)
    assert np.array_equal(event.column("truth.particle_id"), truth.particle_id)
    assert np.array_equal(event.column("hits.layer_id"), layer)


def test_sectors_are_events_of_their_own(tmp_path):
    for sector in (0, 1):
        graph = Data(x=torch.ones(3, 3), particle_id=torch.tensor([1, 1, 0]))
        torch.save(graph, tmp_path / f"data21_s{sector}.pt")
    assert converted(tmp_path, tmp_path / "out").event_ids.tolist() == [21000, 21001]
