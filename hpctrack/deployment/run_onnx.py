"""The exported chain without hpctrack: numpy, scipy and onnxruntime alone.

python run_onnx.py HITS.npz EDGES.npz

HITS: `x` float32 [N, A], a row a hit, a column a node feature (manifest.json says which).  EDGES: `edge_index` int64
[2, M] of what the last stage keeps, each from its inner to its outer hit; `score` [M]; `track` [N], connected
components, -1 for a hit without an edge.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

FOLDER = Path(__file__).parent


def run(stage: dict, **inputs: np.ndarray) -> np.ndarray:
    """The only output of a stage."""
    session = onnxruntime.InferenceSession(str(FOLDER / stage["onnx"]))
    return session.run(None, {name: inputs[name] for name in stage["inputs"]})[0]


def near(points: np.ndarray, radius: float) -> np.ndarray:
    """All pairs nearer than the radius, as ACTS makes them: the first hit before the second."""
    pairs = cKDTree(points.astype(np.float64)).query_pairs(radius, output_type="ndarray").T
    gaps = ((points[pairs[0]] - points[pairs[1]]) ** 2).sum(axis=1)
    return np.sort(pairs[:, gaps < np.float32(radius) ** 2], axis=0).astype(np.int64)


def outwards(x: np.ndarray, edges: np.ndarray, names: list[str]) -> np.ndarray:
    """Edges from the hit nearer to the origin to the other."""
    square = (x[:, [names.index("R"), names.index("Z")]].astype(np.float64) ** 2).sum(axis=1)
    return np.where(square[edges[0]] > square[edges[1]], edges[::-1], edges)


def main(hits: str, out: str) -> None:
    """Embed, search, score and cut, stage by stage."""
    manifest = json.loads((FOLDER / "manifest.json").read_text())
    x = np.load(hits)["x"].astype(np.float32)
    embedding, *classifiers = manifest["stages"]
    edges = near(run(embedding, x=x), embedding["radius"])
    score = np.ones(edges.shape[1])
    for stage in classifiers:
        attr = np.zeros((edges.shape[1], 6), np.float32)
        score = 1 / (1 + np.exp(-run(stage, x=x, edge_index=edges, edge_attr=attr).astype(np.float64)))
        edges, score = edges[:, score >= stage["cut"]], score[score >= stage["cut"]]
    label = connected_components(coo_matrix((np.ones(len(score)), tuple(edges)), shape=(len(x), len(x))))[1]
    label[np.bincount(edges.ravel(), minlength=len(x)) == 0] = -1
    np.savez(out, edge_index=outwards(x, edges, manifest["node_features"]), score=score, track=label)


if __name__ == "__main__":
    main(*sys.argv[1:])
