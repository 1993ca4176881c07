"""Texts of an export for ACTS: the configuration to paste into a script, and the model card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hpctrack.events.features import FEATURES
from hpctrack.inference.stages import InferConfig

NEIGHBOURS = 500  # the cap of ACTS' search on GPUs; this project's has none

CARD = """# Models for ACTS

Written by hpctrack {hpctrack} with torch {torch}. `manifest.json` says the same for programs. `acts_config.py` is to be
pasted into, or imported by, a script of ACTS.

| stage | files | inputs | outputs | settings |
|---|---|---|---|---|
{stages}

Edge classifiers give logits. ACTS applies the sigmoid and keeps edges above the cut. Edges may be given either way: the
models turn them so that they lead away from the origin, as in training. `undirected` must be off. All is computed in
fp32, also where training used less.

## Inputs

Columns of `x`, in this order, all with scale 1: mm and rad.

| node feature of ACTS | column of a dataset |
|---|---|
{columns}

The models compute their own features of these:

{features}
{clusters}
## Trained

{models}

What a model was trained on, and how good it is, says whoever trained it. It knows the detector, the field and the hits
of its training.

## Differences from hpctrack's own chain

- Without a GPU, ACTS searches in at most 12 dimensions. On a GPU it takes at most `knnVal` neighbours; hpctrack has no
  cap.
- ACTS builds tracks as connected components. Builder `components` does the same; `walk` also takes components apart
  that branch.
- TensorRT's stage needs a third input, `edge_attr`: export with `--edge-attr`, and make the engine of the ONNX file.
- ONNX of a model that searches neighbours computes all distances: some 30 bytes for each pair of hits.
"""
CLUSTERS = """
Those of clusters must mean what they meant in training. `LocDir01` and `LocDir11`: the size of the cluster in mm along
the two axes of the module, channels times pitch. `LocEta1` and `LocPhi1`: the direction of (size, size, thickness of
the module) in the module's frame; `GlobEta1` and `GlobPhi1`: the same direction in the detector's. `ChargeSum`: in the
unit of the training data. An ACTS that leaves them zero gives wrong tracks without a word: print them once.
"""
HEAD = '''"""Stages for acts.examples.reconstruction.addGnn, written by hpctrack. Needs ACTS with its plugin Gnn.

folder: where this file is.  backend: "torch" or "onnx", of the edge classifiers.
"""

from pathlib import Path

import acts
from acts.examples import gnn
from acts.examples.reconstruction import addGnn

folder = Path(__file__).parent
backend = "torch"
level = acts.logging.INFO
'''
EMBEDDING = """
graphConstructor = gnn.TorchMetricLearning(
    level=level,
    modelPath=str(folder / "{torchscript}"),
    selectedFeatures=selected,
    embeddingDim={dimensions},
    rVal={radius},
    knnVal={neighbours},
)
"""
EDGES = """    "{name}": dict(cut={cut}),
"""
REST = """

def classifier(name, settings):
    if backend == "onnx":
        return gnn.OnnxEdgeClassifier(level=level, modelPath=str(folder / f"{name}.onnx"), **settings)
    return gnn.TorchEdgeClassifier(
        level=level,
        modelPath=str(folder / f"{name}.pt"),
        selectedFeatures=selected,
        nChunks=1,  # a graph network sees all edges at once
        undirected=False,  # the models turn edges outwards themselves
        **settings,
    )


def add(s, **more):
    \"\"\"Adds the stages to the sequencer `s`; `more` goes to addGnn: inputClusters, device, ...\"\"\"
    return addGnn(
        s,
        graphConstructor=graphConstructor,
        edgeClassifiers=[classifier(name, settings) for name, settings in classifiers.items()],
        trackBuilder=gnn.BoostTrackBuilding(level=level),
        nodeFeatures=nodeFeatures,
        featureScales=featureScales,
        logLevel=level,
        **more,
    )
"""


def configuration(manifest: dict[str, Any]) -> str:
    """acts_config.py: what a script of ACTS needs to run the stages."""
    names = manifest["node_features"]
    text = HEAD + "\nnodeFeatures = [\n" + "".join(f"    gnn.NodeFeature.{name},\n" for name in names) + "]\n"
    text += "featureScales = [1.0] * len(nodeFeatures)\nselected = list(range(len(nodeFeatures)))\n"
    embeddings = [stage for stage in manifest["stages"] if stage["kind"] == "embedding"]
    edges = [stage for stage in manifest["stages"] if stage["kind"] == "edges"]
    if embeddings:
        text += EMBEDDING.format(**embeddings[0], neighbours=NEIGHBOURS)
    else:
        text += "\ngraphConstructor = None  # no stage of this export makes a graph: name your own\n"
    text += "classifiers = {  # in this order\n" + "".join(EDGES.format(**stage) for stage in edges) + "}\n"
    return text + REST


def card(manifest: dict[str, Any], configs: Sequence[InferConfig]) -> str:
    """README.md: the model card."""
    stages, models = [], []
    for stage, config in zip(manifest["stages"], configs, strict=True):
        shapes = [", ".join(f"`{n}` {s}".replace("'", "") for n, s in stage[k].items()) for k in ("inputs", "outputs")]
        settings = ", ".join(f"{key} {stage[key]:g}" for key in ("cut", "radius", "dimensions") if stage.get(key))
        cells = [stage["name"], f"`{stage['torchscript']}`, `{stage['onnx']}`", *shapes, settings]
        stages.append(f"| {' | '.join(cells)} |")
        options = ", ".join(f"{key}: {value}" for key, value in config.model.options.items())
        digest = stage["model_digest"]
        models.append(f"- {stage['name']}: model `{config.model.name}` ({options}); digest of the weights {digest}.")
    columns = zip(manifest["node_features"], manifest["columns"], strict=True)
    features = dict.fromkeys(f"`{f}` = {FEATURES[f].formula}" for config in configs for f in config.features)
    return CARD.format(
        **manifest | {"stages": "\n".join(stages), "columns": "\n".join(f"| {a} | `{c}` |" for a, c in columns)},
        features="\n".join(f"- {feature}" for feature in features),
        clusters=CLUSTERS if any(column.startswith("cells.") for column in manifest["columns"]) else "",
        models="\n".join(models),
    )
