"""Stages of a pipeline, or an influencer model, as files for ACTS: TorchScript, ONNX, a manifest, and what to paste.

Contracts of ACTS' Plugins/Gnn, version 48: TorchMetricLearning, TorchEdgeClassifier, OnnxEdgeClassifier,
TensorRTEdgeClassifier. All stages see the same node features, each takes its own of them.

Legend: N hits, A node features, E edges, D embedding dimensions, K features of edges.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpctrack import __version__
from hpctrack.deployment import paste
from hpctrack.deployment.exported_models import EdgeModel, HitModel
from hpctrack.deployment.node_features import NODE_FEATURES, OF_CLUSTERS, Inputs, columns_of
from hpctrack.errors import InputError, MachineError
from hpctrack.files.atomic import publish, remove, temporary_name, write_json, write_text
from hpctrack.inference.stages import InferConfig, load_model
from hpctrack.models.contracts import Model
from hpctrack.models.embedding import EmbeddingModel, InfluencerModel
from hpctrack.models.graph_network import GraphNetwork
from hpctrack.tracking.builders import build_builder
from hpctrack.training import checkpoint

OPSET = 18
CPU_DIMENSIONS = 12  # of an embedding that ACTS' k-d tree takes; on a GPU there is no limit
TOLERANCE = 1e-5  # of what files give, against the model, in units of 1 + the largest output
SAMPLE = (300, 2000)  # hits and edges with which files are compared with the model
EDGE_ATTR = 6  # features of an edge that ACTS' module map makes
ENDS = ("hits.r", "hits.z")  # by which an edge leads outwards


@dataclass(frozen=True)
class Stage:
    """A model as it is written: its names, its module and what its builder found."""

    name: str
    kind: str  # embedding, edges or influencer
    module: nn.Module
    inputs: list[str]
    outputs: list[str]
    digest: str
    settings: dict[str, Any]  # for the manifest: radius and dimensions, or cut

    @property
    def axes(self) -> dict[str, dict[int, str]]:
        """Which dimensions have any size, as torch.onnx takes them."""
        free = {"x": {0: "N"}, "edge_index": {1: "E"}, "edge_attr": {0: "E"}, "output": {0: "E"}}
        return {name: free.get(name, {0: "N"}) for name in [*self.inputs, *self.outputs]}

    def sample(self, hits: int, edges: int, columns: Sequence[str]) -> tuple[Tensor, ...]:
        """Inputs of so many hits and edges, in the ranges of a detector."""
        rng = torch.Generator().manual_seed(hits)
        lowest = {"hits.r": 30.0, "hits.phi": -3.0, "hits.z": -2000.0, "hits.eta": -4.0, "cells.cell_count": 1.0}
        highest = {"hits.r": 1000.0, "hits.phi": 3.0, "hits.z": 2000.0, "hits.eta": 4.0, "cells.cell_count": 20.0}
        low, high = (torch.tensor([of.get(c, default) for c in columns]) for of, default in ((lowest, 0), (highest, 2)))
        x_NA = low + (high - low) * torch.rand(hits, len(columns), generator=rng)
        edge_2E = torch.randint(0, hits, (2, edges), generator=rng)
        edge_attr = torch.zeros(edges, EDGE_ATTR)
        given = {"x": x_NA, "edge_index": edge_2E, "edge_attr": edge_attr}
        return tuple(given[name] for name in self.inputs)


def export_acts(paths: Sequence[Path], configs: Sequence[InferConfig], out: Path, edge_attr: bool = False) -> list[str]:
    """Write the models of the checkpoints `paths` into the new folder `out`; lines about what was written.

    `edge_attr`: edge classifiers have a third input. InputError for a model that ACTS has no place for.
    """
    if importlib.util.find_spec("onnx") is None:
        raise InputError("export --for acts needs onnx, which is not installed: pip install 'hpctrack[onnx]'")
    models = [as_model(config, path) for config, path in zip(configs, paths, strict=True)]
    columns = columns_of(
        [feature for config in configs for feature in config.features],
        ENDS if any(isinstance(model, GraphNetwork) for model in models) else (),
    )
    found: list[Stage] = []
    for model, config, path in zip(models, configs, paths, strict=True):
        stage = as_stage(model, config, path, columns, edge_attr)
        number = sum(other.name.startswith(stage.name) for other in found)
        found.append(stage if not number else Stage(**{**vars(stage), "name": f"{stage.name}{number + 1}"}))
    temporary, lines = temporary_name(out), []
    try:
        temporary.mkdir(parents=True)
        entries = []
        for stage in found:
            worst = write_stage(stage, temporary, columns)
            entries.append(entry(stage, columns, worst))
            files = " and ".join(f"{name} ({gap:.0e})" for name, gap in worst.items())
            lines.append(f"{stage.name}: {files}, in brackets the largest difference from the model")
        manifest = {
            "format": "hpctrack-acts-export",
            "version": 1,
            "hpctrack": __version__,
            "torch": torch.__version__,
            "node_features": [NODE_FEATURES[column] for column in columns],
            "feature_scales": [1.0] * len(columns),
            "columns": columns,
            "stages": entries,
        }
        write_json(temporary / "manifest.json", manifest)
        write_text(temporary / "acts_config.py", paste.configuration(manifest))
        write_text(temporary / "README.md", paste.card(manifest, configs))
        if [stage.kind for stage in found] == ["embedding", *["edges"] * (len(found) - 1)]:
            shutil.copy(Path(__file__).with_name("run_onnx.py"), temporary / "run_onnx.py")
        publish(temporary, out)
    finally:
        remove(temporary)
    return lines + warnings_about(manifest)


def as_model(config: InferConfig, path: Path) -> Model:
    """The checkpoint's model in fp32."""
    model = load_model(config, path, torch.device("cpu")).float()
    assert isinstance(model, Model)
    return model


def as_stage(model: Model, config: InferConfig, path: Path, columns: Sequence[str], edge_attr: bool) -> Stage:
    """The form of a checkpoint's model that ACTS has a place for; InputError if there is none."""
    builder, inputs = build_builder(config.builder), Inputs(config.features, columns)
    digest, radius = checkpoint.digest(model), getattr(builder.options, "radius", None)
    if isinstance(model, GraphNetwork):
        cut = getattr(builder.options, "cut", None)
        if cut is None:
            raise InputError(
                f"{path}: builder '{config.builder.name}' has no cut on edges; give builder.name=edges builder.cut=…"
            )
        names = ["x", "edge_index", "edge_attr"] if edge_attr else ["x", "edge_index"]
        return Stage(
            "filter" if config.model.name == "filter" else "gnn",
            "edges",
            EdgeModel(model, inputs),
            inputs=names,
            outputs=["output"],
            digest=digest,
            settings={"cut": cut},
        )
    if isinstance(model, (EmbeddingModel, InfluencerModel)):
        size = int(config.model.options.get("embedding", model.Options.model_fields["embedding"].default))
        size += 2 if model.azimuth else 0
        settings = {"dimensions": size, "radius": radius}
        embedding = isinstance(model, EmbeddingModel)
        outputs = ["embedding"] if embedding else ["user", "influencer"]
        kind = "embedding" if embedding else "influencer"
        module = HitModel(model, inputs, outputs)
        return Stage(kind, kind, module, inputs=["x"], outputs=outputs, digest=digest, settings=settings)
    raise InputError(
        f"{path}: model '{config.model.name}' has no place in ACTS; export --for acts takes models that embed hits "
        "(embedding, influencer) and graph networks that score edges (filter, interaction, attention, convolution)"
    )


def write_stage(stage: Stage, folder: Path, columns: Sequence[str]) -> dict[str, float]:
    """Write NAME.pt and NAME.onnx; how far each is from the model on a sample. MachineError if that is too far."""
    module, few, many = stage.module.eval(), stage.sample(9, 13, columns), stage.sample(*SAMPLE, columns)
    script, onnx = folder / f"{stage.name}.pt", folder / f"{stage.name}.onnx"
    # asinh is a standard operator that the exporter of traced modules has no line for
    torch.onnx.register_custom_op_symbolic("aten::asinh", lambda g, x: g.op("Asinh", x), 9)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that tracing is old, and constants are constant
        traced = torch.jit.trace(module, few, check_trace=False)
        traced.save(str(script))
        torch.onnx.export(
            module,
            few,
            str(onnx),
            input_names=stage.inputs,
            output_names=stage.outputs,
            dynamic_axes=stage.axes,
            opset_version=OPSET,
            dynamo=False,
        )
        wanted = as_tuple(module(*many))
        found = {script.name: as_tuple(torch.jit.load(str(script))(*many))}
    if importlib.util.find_spec("onnxruntime") is not None:
        session = importlib.import_module("onnxruntime").InferenceSession(str(onnx))
        given = {name: value.numpy() for name, value in zip(stage.inputs, many, strict=True)}
        found[onnx.name] = tuple(torch.from_numpy(value) for value in session.run(None, given))
    worst = {name: max(gap(a, b) for a, b in zip(wanted, values, strict=True)) for name, values in found.items()}
    for name, distance in worst.items():
        if not distance <= TOLERANCE:
            raise MachineError(
                f"{name}: differs from the model by {distance:.1e}, more than {TOLERANCE:g}: not written"
            )
    return worst


def as_tuple(values: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """One output as several."""
    return (values,) if isinstance(values, Tensor) else tuple(values)


def gap(wanted: Tensor, found: Tensor) -> float:
    """Largest difference, in units of 1 + the largest of what is wanted."""
    return float((wanted - found).abs().max() / (1 + wanted.abs().max()))


def entry(stage: Stage, columns: Sequence[str], worst: dict[str, float]) -> dict[str, Any]:
    """A stage in the manifest."""
    shapes: dict[str, Any] = {"x": ["N", len(columns)], "edge_index": [2, "E"], "edge_attr": ["E", EDGE_ATTR]}
    shapes |= {name: ["E"] if stage.kind == "edges" else ["N", stage.settings["dimensions"]] for name in stage.outputs}
    return {
        "name": stage.name,
        "kind": stage.kind,
        "torchscript": f"{stage.name}.pt",
        "onnx": f"{stage.name}.onnx",
        "inputs": {name: shapes[name] for name in stage.inputs},
        "outputs": {name: shapes[name] for name in stage.outputs},
        **stage.settings,
        "model_digest": stage.digest,
        "difference": worst,
    }


def warnings_about(manifest: dict[str, Any]) -> list[str]:
    """What ACTS may not do with this export."""
    lines = []
    for stage in manifest["stages"]:
        if stage["kind"] == "embedding" and stage["dimensions"] > CPU_DIMENSIONS:
            lines.append(
                f"{stage['name']}: {stage['dimensions']} dimensions; without a GPU, ACTS searches in at most "
                f"{CPU_DIMENSIONS} (model.embedding, and 2 of model.azimuth)"
            )
    of_clusters = [NODE_FEATURES[column] for column in manifest["columns"] if column in OF_CLUSTERS]
    if of_clusters:
        lines.append(
            f"shapes of clusters are needed ({', '.join(of_clusters)}): see README.md, and whether your ACTS has them"
        )
    return lines
