"""Events padded to sizes of buckets, so that what was compiled or recorded on a GPU for one serves the next one, too.

An event of padding hits stands behind the event, with edges among these alone. An event's outputs do not depend on
those beside it in a batch, so nothing else has to know of it: its rows are cut off.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

STEPS = 8  # sizes from a power of two to the next


def bucket(size: int) -> int:
    """The least size of a bucket that holds `size`: at most an eighth more."""
    step = max(1, 1 << max(0, size.bit_length() - STEPS.bit_length()))
    return -(-size // step) * step


def padded(event: Data) -> Batch:
    """A batch of an event, and of a second one that fills hits and edges up to sizes of buckets, with a hit at least.

    Padding hits are copies of the event's first one. An event without hits stays alone.
    """
    return Batch.from_data_list([event, padding(event)] if event.num_nodes else [event])


def padding(event: Data) -> Data:
    """The second event."""
    hits = bucket(event.num_nodes + 1) - event.num_nodes
    edges = bucket(event.num_edges) - event.num_edges
    out = Data(num_nodes=hits)
    for key, value in event:
        if key == "edge_index":
            out[key] = torch.arange(edges, device=value.device).remainder(hits).expand(2, -1)
        elif torch.is_tensor(value) and event.is_edge_attr(key):
            out[key] = value[:1].expand(edges, *value.shape[1:])
        elif torch.is_tensor(value) and event.is_node_attr(key):
            out[key] = value[:1].expand(hits, *value.shape[1:])
        elif key != "num_nodes":
            out[key] = value
    return out


def unpadded(outputs: dict[str, Tensor], event: Data) -> dict[str, Tensor]:
    """A model's outputs (models/contracts.py) on the batch, without the rows of the padding."""
    rows = {"edge": event.num_edges, "event": 1}
    return {name: value[: rows.get(name.partition("_")[0], event.num_nodes)] for name, value in outputs.items()}
