"""Models as ACTS calls them: tensors in, one tensor out, in operators that TorchScript and ONNX have.

They have the weights and layers of the models of models/, which work through chunks and on batches of events. What is
here sees one event at a time, all of it at once, and no gradients.

Legend: N hits, A node features, E edges, H width, D embedding dimensions, K neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hpctrack.deployment.node_features import Inputs
from hpctrack.errors import InputError
from hpctrack.models.backbones import HeadModel
from hpctrack.models.graph_network import GraphNetwork
from hpctrack.models.hit_geometry import on_circle, pair_features
from hpctrack.models.neighbour_attention import NeighbourBackbone, gather
from hpctrack.models.perceptron import MlpBackbone
from hpctrack.models.sweeps import EdgeLayer, OnEdges, output
from hpctrack.models.transformer import Block, TransformerBackbone
from hpctrack.numerics import at_least_fp32

FAR = 1e30  # a squared distance beyond all others


class HitModel(nn.Module):
    """Outputs of a model on hits: of an `embedding`, or `user` and `influencer`."""

    def __init__(self, model: HeadModel, inputs: Inputs, outputs: Sequence[str]) -> None:
        super().__init__()
        self.model, self.inputs, self.outputs = model, inputs, list(outputs)
        if not isinstance(model.backbone, (MlpBackbone, NeighbourBackbone, TransformerBackbone)):
            raise InputError(f"key 'model.backbone': {type(model.backbone).__name__} has no form that can be exported")

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Node features [N, A] -> each output [N, D]."""
        x_NF = self.inputs(x)
        found = self.model.read(self.hidden(x_NF), x_NF)
        outputs = tuple(found[name] for name in self.outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def hidden(self, x_NF: Tensor) -> Tensor:
        """The backbone's state [N, H] of the hits of one event."""
        backbone = self.model.backbone
        if isinstance(backbone, MlpBackbone):
            return backbone.layers(x_NF)
        if isinstance(backbone, NeighbourBackbone):
            return self.among_neighbours(backbone, x_NF)
        assert isinstance(backbone, TransformerBackbone)  # asked when it was made
        h_NH = backbone.encode(x_NF)
        for block in backbone.blocks:
            assert isinstance(block, Block)
            h_NH = transformed(block, h_NH)
        return backbone.norm(h_NH)

    def among_neighbours(self, backbone: NeighbourBackbone, x_NF: Tensor) -> Tensor:
        """[N, H] after all stages of searches and messages."""
        place_N4, options, h_NH = backbone.geometry(x_NF), backbone.options, backbone.encode(x_NF)
        for stage in backbone.stages:
            space_ND = at_least_fp32(stage.embed(h_NH))
            if options.azimuth:
                space_ND = torch.cat([space_ND, on_circle(place_N4, options.azimuth)], dim=1)
            row_NK, exists_NK = nearest_of_all(space_ND, options.neighbours)
            pair_NKP = pair_features(place_N4.unsqueeze(1), gather(place_N4, row_NK))
            for step in stage.steps:
                h_NH = step.update(h_NH, gather(step.say(h_NH), row_NK), pair_NKP, exists_NK)
        return backbone.norm(h_NH)


def transformed(block: Block, h_NH: Tensor) -> Tensor:
    """A block of the transformer on the hits of one event."""
    qkv_N3AD = block.qkv(block.norm1(h_NH)).unflatten(1, (3, block.heads, -1))
    q, k, v = (part.transpose(0, 1).unsqueeze(0) for part in qkv_N3AD.unbind(1))
    heard_AND = nn.functional.scaled_dot_product_attention(q, k, v).squeeze(0)
    h_NH = h_NH + block.out(heard_AND.transpose(0, 1).flatten(1))
    return h_NH + block.feed_forward(block.norm2(h_NH))


def nearest_of_all(point_ND: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest points of each, as graphs/neighbours.py finds them, by all distances: 8 N^2 bytes, and more."""
    point_ND = point_ND.double()
    square_NN = point_ND.new_zeros(1, 1)
    for values in point_ND.unbind(1):
        gap_NN = values.unsqueeze(1) - values.unsqueeze(0)
        square_NN = square_NN + gap_NN * gap_NN
    nobody = torch.full_like(point_ND[:, :1], FAR).expand(-1, k)  # events of fewer hits have places for nobody
    found = torch.cat([square_NN, nobody], dim=1).topk(k, dim=1, largest=False, sorted=True)
    exists_NK = found.values < FAR
    own_N1 = torch.ones_like(point_ND[:, :1]).cumsum(0).to(torch.int64) - 1
    return torch.where(exists_NK, found.indices, own_N1), exists_NK


class EdgeModel(nn.Module):
    """A graph network's logits of edges, whichever way each one is given: it leads outwards in here, as in training.

    With `edge_attr` there is a third input, features of edges [E, K] that ACTS may have and TensorRT's stage needs; the
    model has its own and reads none of it but how many edges there are.
    """

    def __init__(self, network: GraphNetwork, inputs: Inputs) -> None:
        super().__init__()
        self.network, self.inputs = network, inputs

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None) -> Tensor:
        """Node features [N, A], edges int64 [2, E] (and edge_attr [E, K]) -> logits [E]."""
        ends = self.outwards(x, edge_index)
        logit_E = self.logits(self.inputs(x), *ends)
        return logit_E if edge_attr is None else logit_E.reshape(edge_attr.shape[0])

    def outwards(self, x_NA: Tensor, edge_2E: Tensor) -> tuple[Tensor, Tensor]:
        """Begin and end of each edge, the begin nearer to the origin (as graphs/stored.py has it)."""
        begin, end = edge_2E[0], edge_2E[1]
        r, z = (self.inputs.column(x_NA, name) for name in ("hits.r", "hits.z"))
        # exact for hits at nearly the same distance, where differences of squares are not
        farther = (r[begin] - r[end]) * (r[begin] + r[end]) + (z[begin] - z[end]) * (z[begin] + z[end])
        return torch.where(farther > 0, end, begin), torch.where(farther > 0, begin, end)

    def logits(self, x_NF: Tensor, begin_E: Tensor, end_E: Tensor) -> Tensor:
        """What the network's forward pass gives, without chunks."""
        network, nodes = self.network, x_NF.shape[0]

        def on_edges(layer: EdgeLayer, h_NK: Tensor, e_EH: Tensor | None) -> OnEdges:
            source, target = layer.project(h_NK)
            return layer.edge(source[begin_E], target[end_E], e_EH)

        def total(index_E: Tensor, message_EH: Tensor | None) -> Tensor:
            assert message_EH is not None  # iterations send a message both ways
            zeros_NH = message_EH.new_zeros(nodes, message_EH.shape[1])
            return zeros_NH.scatter_add(0, index_E.unsqueeze(1).expand_as(message_EH), message_EH)

        e_EH = None
        if network.edge_start is not None:
            e_EH = on_edges(network.edge_start, network.geometry(x_NF), None)[0]
        ones_E1 = torch.ones_like(begin_E).to(x_NF.dtype).unsqueeze(1)
        degree_N1 = total(begin_E, ones_E1) + total(end_E, ones_E1)
        h_NH = network.start(x_NF)
        for step in network.steps:
            e_EH, to_end, to_begin = on_edges(step, h_NH, e_EH)
            h_NH = step.update(h_NH, total(end_E, to_end), total(begin_E, to_begin), degree_N1)
        return output(on_edges(network.head, h_NH, e_EH))[:, 0]
